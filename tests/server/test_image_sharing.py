"""Pictures by URL that several ask for: fetched once, kept for a short while, and never shared between tenants."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web


class Origin:
    """A server of pictures that waits for `open` and counts who came and who was cut off."""

    def __init__(self, picture: bytes) -> None:
        self.picture = picture
        self.headers: dict[str, str] = {}
        self.open = asyncio.Event()
        self.open.set()
        self.slow = asyncio.Event()
        self.asked: list[str] = []
        self.cut = 0
        self.base = ""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        try:
            await self.open.wait()
            if request.path.startswith("/slow"):
                await self.slow.wait()
        except asyncio.CancelledError:
            self.cut += 1
            raise
        if request.path == "/none":
            return web.Response(status=404)
        if request.path == "/moved":
            return web.Response(status=302, headers={"Location": "/p", **self.headers})
        headers = {} if request.path == "/p" else self.headers
        if request.path == "/large":
            return web.Response(body=self.picture + bytes(60_000), headers=headers)
        return web.Response(body=self.picture, headers=headers)


@pytest.fixture
async def origin(stack, png):
    origin = Origin(png())
    app = web.Application()
    app.router.add_get("/{path:.*}", origin.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    origin.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    return origin


@pytest.fixture
def start(start_controller, start_worker):
    async def start(**settings):
        client = await start_controller(media_allow_private=True, media_ports="*", **settings)
        return client, await start_worker("w1", client)

    return start


async def waiting(client, until, origin, fetches: int, queries: int) -> None:
    """Until so many fetches have reached the origin and so many pictures were asked for."""
    registry = client.controller.metrics.registry
    await until(
        lambda: (
            len(origin.asked) == fetches
            and registry.get_sample_value("tephra_controller_media_cache_queries_total") == queries
        )
    )


async def test_one_url_asked_for_by_many_at_once_is_fetched_once(start, origin, until, with_image):
    client, worker = await start(media_cache_bytes=0)
    origin.open.clear()
    chats = [asyncio.create_task(client.chat(with_image(f"{origin.base}/a"))) for _ in range(8)]
    await waiting(client, until, origin, 1, 8)
    assert await client.metric("media_fetches_running") == 1
    origin.open.set()
    assert [status for status, _, _ in await asyncio.gather(*chats)] == [200] * 8
    assert (origin.asked, len(worker.bodies)) == (["/a"], 8)
    assert await client.metric("media_fetches_joined_total") == 7
    assert await client.metric("media_fetches_running") == 0
    assert client.controller.room.bytes == 0


async def test_one_who_leaves_ends_nothing_for_the_others_and_the_last_one_ends_the_fetch(
    start, origin, until, with_image
):
    client, worker = await start()
    origin.open.clear()
    chats = [asyncio.create_task(client.chat(with_image(f"{origin.base}/a"))) for _ in range(3)]
    await waiting(client, until, origin, 1, 3)
    room = client.controller.room
    chats[0].cancel()  # the one who began it
    await until(lambda: room.requests == 2)
    assert origin.cut == 0
    origin.open.set()
    assert [status for status, _, _ in await asyncio.gather(*chats[1:])] == [200, 200]
    assert len(worker.bodies) == 2

    origin.open.clear()
    chats = [asyncio.create_task(client.chat(with_image(f"{origin.base}/b"))) for _ in range(3)]
    await waiting(client, until, origin, 2, 6)
    for chat in chats:
        chat.cancel()
    await until(lambda: origin.cut == 1)
    await until(lambda: room.requests == room.bytes == 0)
    assert await client.metric("media_fetches_running") == 0
    assert await client.metric("media_fetches_total", outcome="abandoned") == 1
    origin.open.set()
    assert (await client.chat(with_image(f"{origin.base}/b")))[0] == 200  # begun anew, not joined to what was given up


async def test_one_whose_budget_is_used_up_ends_nothing_for_the_others(start, origin, until, png, data_url, with_image):
    client, worker = await start(max_request_image_bytes=100_000)
    origin.open.clear()
    part = with_image(f"{origin.base}/large")[1]
    poor = asyncio.create_task(client.chat([with_image(data_url(png() + bytes(60_000)))[1], part]))
    await waiting(client, until, origin, 1, 1)
    rich = asyncio.create_task(client.chat([part]))
    await waiting(client, until, origin, 1, 2)
    origin.open.set()
    status, body, _ = await poor
    assert (status, body["error"]["param"]) == (413, "messages[0].content[1].image_url")
    assert (await rich)[0] == 200
    assert (origin.asked, len(worker.bodies)) == (["/large"], 1)


async def test_a_failure_is_told_to_all_who_wait_each_by_their_own_place_and_is_not_kept(
    start, origin, until, with_image
):
    client, _ = await start()
    origin.open.clear()
    part = with_image(f"{origin.base}/none")[1]
    text = {"type": "text", "text": "and"}
    chats = [asyncio.create_task(client.chat([text] * number + [part])) for number in range(3)]
    await waiting(client, until, origin, 1, 3)
    origin.open.set()
    for number, (status, body, _) in enumerate(await asyncio.gather(*chats)):
        assert (status, body["error"]["code"]) == (400, "image_fetch_failed")
        assert body["error"]["param"] == f"messages[0].content[{number}].image_url"
    assert (await client.chat([part]))[0] == 400
    assert origin.asked == ["/none"] * 2


async def test_a_picture_is_kept_for_those_who_ask_shortly_after(start, origin, until, with_image):
    client, worker = await start(media_cache_seconds=60.0)
    content = with_image(f"{origin.base}/a")
    for _ in range(3):
        assert (await client.chat(content))[0] == 200
    assert origin.asked == ["/a"]
    assert worker.bodies[0]["messages"] == worker.bodies[2]["messages"]
    assert await client.metric("media_cache_queries_total") == 3
    assert await client.metric("media_cache_hits_total") == 2
    assert len(origin.picture) <= await client.metric("media_cache_bytes") <= len(origin.picture) + 2048
    assert (await client.chat(with_image(f"{origin.base}/a?other")))[0] == 200
    assert origin.asked == ["/a", "/a"]


async def test_a_kept_picture_is_forgotten_when_its_time_is_over(start, origin, until, with_image):
    client, _ = await start(media_cache_seconds=0.2)
    content = with_image(f"{origin.base}/a")
    assert (await client.chat(content))[0] == 200
    registry = client.controller.metrics.registry
    await until(lambda: registry.get_sample_value("tephra_controller_media_cache_bytes") == 0)
    assert (await client.chat(content))[0] == 200
    assert origin.asked == ["/a", "/a"]


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        ({"Cache-Control": "no-store"}, False),
        ({"Cache-Control": "max-age=600, PRIVATE"}, False),
        ({"Cache-Control": 'private="x-user"'}, False),
        ({"Cache-Control": "no-cache"}, False),
        ({"Cache-Control": "max-age=0"}, False),
        ({"Cache-Control": "max-age=60", "Age": "60"}, False),
        ({"Cache-Control": "max-age=soon"}, False),
        ({"Cache-Control": "max-age=600, s-maxage=0"}, False),
        ({"Pragma": "no-cache"}, False),
        ({"Vary": "*"}, False),
        ({"Cache-Control": "public, max-age=600"}, True),
        ({"Cache-Control": "max-age=600", "Age": "10"}, True),
        ({"Vary": "Accept"}, True),
    ],
)
async def test_what_its_server_says_about_keeping_a_picture_holds(start, origin, with_image, headers, kept):
    client, _ = await start()
    origin.headers = headers
    for path, fetches in {"a": 1, "moved": 2}.items():  # /moved says it of the redirect alone
        origin.asked.clear()
        for _ in range(2):
            assert (await client.chat(with_image(f"{origin.base}/{path}")))[0] == 200
        assert len(origin.asked) == fetches * (1 if kept else 2), path


async def test_the_cache_keeps_within_its_bytes_and_forgets_what_was_used_longest_ago(start, origin, with_image):
    client, _ = await start(media_cache_bytes=3 * (len(origin.picture) + 1024))
    for path in ("a", "b", "c", "a", "d"):
        assert (await client.chat(with_image(f"{origin.base}/{path}")))[0] == 200
        assert await client.metric("media_cache_bytes") <= 3 * (len(origin.picture) + 1024)
    assert origin.asked == ["/a", "/b", "/c", "/d"]
    for path in ("a", "c", "d", "b"):
        assert (await client.chat(with_image(f"{origin.base}/{path}")))[0] == 200
    assert origin.asked[4:] == ["/b"]
    origin.asked.clear()
    for _ in range(2):
        assert (await client.chat(with_image(f"{origin.base}/large")))[0] == 200
    assert origin.asked == ["/large"] * 2  # larger than all of the cache: never kept


@pytest.mark.parametrize("shared", [False, True])
async def test_tenants_share_neither_kept_pictures_nor_fetches_under_way_unless_told_to(
    start, origin, until, with_image, shared
):
    """Whether a picture comes at once or late would tell one tenant what another one asked about."""
    client, _ = await start(api_keys=("key-a", "key-b"), tenant_caches="shared" if shared else "separate")
    origin.open.clear()
    content = with_image(f"{origin.base}/a")

    def chat(key):
        return asyncio.create_task(client.chat(content, headers={"Authorization": f"Bearer {key}"}))

    chats = [chat(key) for key in ("key-a", "key-b", "key-a", "key-b")]
    await waiting(client, until, origin, 1 if shared else 2, 4)
    origin.open.set()
    assert [status for status, _, _ in await asyncio.gather(*chats)] == [200] * 4
    await asyncio.gather(*(chat(key) for key in ("key-a", "key-b")))
    assert len(origin.asked) == (1 if shared else 2)
    assert await client.metric("media_cache_hits_total") == 2


async def test_fetches_at_once_are_bounded_and_the_others_wait(start, origin, until, with_image):
    client, _ = await start(media_concurrency=2)
    origin.open.clear()
    chats = [asyncio.create_task(client.chat(with_image(f"{origin.base}/{number}"))) for number in range(6)]
    await waiting(client, until, origin, 2, 6)
    await asyncio.sleep(0.05)
    assert len(origin.asked) == 2
    origin.open.set()
    assert [status for status, _, _ in await asyncio.gather(*chats)] == [200] * 6
    assert len(origin.asked) == 6


async def test_a_tenants_slow_pictures_leave_places_for_the_others(start, origin, until, with_image):
    client, _ = await start(media_concurrency=4, api_keys=("slow", "second", "third"))

    def chat(key, path):
        content = with_image(f"{origin.base}/{path}")
        return asyncio.create_task(client.chat(content, headers={"Authorization": f"Bearer {key}"}))

    slow = [chat("slow", f"slow{number}") for number in range(8)]
    await waiting(client, until, origin, 2, 8)
    second = [chat("second", f"slow-too{number}") for number in range(8)]
    await waiting(client, until, origin, 3, 16)
    for number in range(3):
        assert (await chat("third", f"quick{number}"))[0] == 200
    assert len(origin.asked) == 6
    origin.slow.set()
    assert [status for status, _, _ in await asyncio.gather(*slow, *second)] == [200] * 16


async def test_names_that_take_long_to_look_up_keep_their_tenants_places_and_no_others(
    start_controller, start_worker, origin, until, with_image
):
    """A look-up cannot be ended: given up by one, it still takes a thread that others need."""
    looked_up: list[str] = []
    found = asyncio.Event()

    async def resolve(host: str, port: int) -> list[str]:
        looked_up.append(host)
        if host.startswith("slow"):
            await found.wait()
        return ["127.0.0.1"]

    settings = {"media_allow_private": True, "media_ports": "*", "media_concurrency": 4, "media_seconds": 0.3}
    client = await start_controller(resolve, api_keys=("slow", "other"), **settings)
    await start_worker("w1", client)
    port = origin.base.rpartition(":")[2]

    def chat(key, host):
        content = with_image(f"http://{host}:{port}/a")
        return asyncio.create_task(client.chat(content, headers={"Authorization": f"Bearer {key}"}))

    given_up = await asyncio.gather(*(chat("slow", f"slow{number}.test") for number in range(6)))
    codes = sorted(body["error"]["code"] for _, body, _ in given_up)
    assert codes == ["image_fetch_failed"] * 2 + ["overloaded"] * 4
    assert sorted(looked_up) == sorted(set(looked_up)) and len(looked_up) == 2
    assert (await chat("slow", "quick.test"))[1]["error"]["code"] == "overloaded"  # its own places are still taken
    assert (await chat("other", "quick.test"))[0] == 200
    assert await client.metric("media_fetches_total", outcome="crowded") == 5
    found.set()
    assert (await chat("slow", "quick.test"))[0] == 200
