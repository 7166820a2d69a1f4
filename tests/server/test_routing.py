"""Where requests go, seen from outside: versions that are pinned, sessions that stay, pictures that come home."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from aiohttp import web


def where(workers):
    """How many requests each worker got."""
    return [len(worker.bodies) for worker in workers]


async def test_a_pinned_version_answers_and_every_answer_names_its_version(client, start_worker):
    old = await start_worker("w1", client, version="v1")
    new = await start_worker("w2", client, version="v2")
    for _ in range(3):
        status, _, headers = await client.chat("hi", headers={"X-Model-Version": "v2"})
        assert (status, headers["X-Tephra-Version"]) == (200, "v2")
    status, _, headers = await client.chat("hi", model="demo@v1")
    assert (status, headers["X-Tephra-Version"]) == (200, "v1")
    assert where([old, new]) == [1, 3]
    assert old.bodies[0]["model"] == "demo"  # what the worker knows itself by
    seen = {(await client.chat("hi"))[2]["X-Tephra-Version"] for _ in range(4)}
    assert seen == {"v1", "v2"}


async def test_streams_name_their_version_too(client, start_worker):
    await start_worker("w1", client, version="v7")
    body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    async with client.session.post(client.url + "/v1/chat/completions", json=body) as response:
        await response.read()
        assert response.headers["X-Tephra-Version"] == "v7"


async def test_a_version_that_never_was_is_404_and_one_that_is_gone_for_now_503(client, start_worker):
    old = await start_worker("w1", client, version="v1")
    await start_worker("w2", client, version="v2")
    status, body, _ = await client.chat("hi", model="demo@v3")
    assert (status, body["error"]["code"], body["error"]["param"]) == (404, "version_not_found", "model")
    assert "'v3'" in body["error"]["message"]
    await old.leave()
    status, body, headers = await client.chat("hi", headers={"X-Model-Version": "v1"})
    assert (status, body["error"]["code"]) == (503, "unavailable")
    assert headers["Retry-After"]
    assert (await client.chat("hi", model="unknown@v1"))[1]["error"]["code"] == "model_not_found"


async def test_a_pinned_version_is_kept_over_a_retry(client, start_worker):
    first = await start_worker("w1", client, version="v1")
    second = await start_worker("w2", client, version="v1")
    other = await start_worker("w3", client, version="v2")

    async def full(request):
        return web.json_response({"error": {"message": "later", "type": "server_error"}}, status=503)

    first.handler = second.handler = full
    assert (await client.chat("hi", model="demo@v1"))[0] == 503
    assert len(first.bodies) == len(second.bodies) == 1
    assert other.bodies == []


async def test_two_wishes_that_differ_and_one_that_is_none_are_refused(client, start_worker):
    await start_worker("w1", client)
    assert (await client.chat("hi", model="demo@v1", headers={"X-Model-Version": "v2"}))[0] == 400
    assert (await client.chat("hi", model="demo@v1", headers={"X-Model-Version": "v1"}))[0] == 200
    assert (await client.chat("hi", headers={"X-Model-Version": "v" * 300}))[0] == 400
    assert (await client.chat("hi", headers={"X-Session-Id": "s" * 300}))[0] == 400


async def test_a_model_whose_name_holds_an_at_sign_is_served_under_it(client, start_worker):
    worker = await start_worker("w1", client, name="llava@home")
    assert (await client.chat("hi", model="llava@home"))[0] == 200
    assert (await client.chat("hi", model="llava@home", headers={"X-Model-Version": "v1"}))[0] == 200
    assert len(worker.bodies) == 2


@pytest.mark.parametrize("routing", ["affinity", "least-outstanding", "power-of-two", "round-robin"])
async def test_a_session_stays_with_its_worker_under_any_policy_and_at_every_controller(
    start_controller, start_worker, until, routing
):
    client, other = await start_controller(routing=routing), await start_controller(routing=routing)
    workers = [await start_worker(f"w{number}", client) for number in range(4)]
    await until(lambda: len(other.controller.table) == 4)
    for session in ("alpha", "beta", "gamma"):
        before = where(workers)
        for asked in (client, other, client, other):
            assert (await asked.chat("hi", headers={"X-Session-Id": session}))[0] == 200
        gained = [after - was for after, was in zip(where(workers), before, strict=True)]
        assert sorted(gained) == [0, 0, 0, 4]
    assert await client.metric("routing_decisions_total", reason="session") == 6


async def test_a_session_whose_worker_drains_goes_on_elsewhere_and_comes_back(start_controller, start_worker):
    client = await start_controller(admin_key="admin")
    workers = {name: await start_worker(name, client) for name in ("w1", "w2", "w3")}
    headers = {"X-Session-Id": "one"}
    await client.chat("hi", headers=headers)
    (home,) = [name for name, worker in workers.items() if worker.bodies]
    act = {"Authorization": "Bearer admin"}
    assert (await client.post({}, f"/admin/workers/{home}/drain", act))[0] == 200
    for _ in range(2):
        assert (await client.chat("hi", headers=headers))[0] == 200
    assert len(workers[home].bodies) == 1
    assert sorted(len(worker.bodies) for worker in workers.values()) == [0, 1, 2]
    assert (await client.post({}, f"/admin/workers/{home}/undrain", act))[0] == 200
    assert (await client.chat("hi", headers=headers))[0] == 200
    assert len(workers[home].bodies) == 2


async def test_requests_about_one_picture_share_a_worker_and_pictures_spread(
    start_controller, start_worker, png, data_url, with_image
):
    client = await start_controller(routing="affinity")
    workers = [await start_worker(f"w{number}", client) for number in range(3)]
    homes = set()
    for size in range(30, 42):
        before = where(workers)
        for text in ("what is it?", "and what colour?", "why?"):
            picture = with_image(data_url(png(size, size)), text)
            assert (await client.chat(picture, max_tokens=8))[0] == 200
        gained = [after - was for after, was in zip(where(workers), before, strict=True)]
        assert sorted(gained) == [0, 0, 3]
        homes.add(gained.index(3))
    assert homes == {0, 1, 2}
    assert await client.metric("routing_decisions_total", reason="home") == 36


async def test_a_clients_name_for_a_picture_has_no_say_in_its_way(
    start_controller, start_worker, png, data_url, with_image
):
    client = await start_controller(routing="affinity")
    workers = [await start_worker(f"w{number}", client) for number in range(3)]
    same = data_url(png())
    for number in range(6):
        content = [
            {"type": "text", "text": f"{number}"},
            {"type": "image_url", "image_url": {"url": same, "digest": f"{number}"}, "uuid": f"{number}"},
        ]
        assert (await client.chat(content, max_tokens=8))[0] == 200
    assert sorted(where(workers)) == [0, 0, 6]


async def test_a_long_beginning_leads_to_one_worker_and_short_prompts_are_balanced(start_controller, start_worker):
    client = await start_controller(routing="affinity")
    workers = [await start_worker(f"w{number}", client) for number in range(3)]
    beginning = "".join(hashlib.sha256(bytes([number])).hexdigest() for number in range(80))
    for number in range(4):
        assert (await client.chat(beginning + f" question {number}", max_tokens=1))[0] == 200
    assert sorted(where(workers)) == [0, 0, 4]
    for _ in range(3):
        assert (await client.chat("hi"))[0] == 200
    assert sum(count > 0 for count in where(workers)) >= 2


async def test_a_popular_picture_spreads_when_its_home_has_more_than_its_share(
    start_controller, start_worker, until, png, data_url, with_image
):
    client = await start_controller(routing="affinity")
    workers = [await start_worker(f"w{number}", client) for number in range(3)]
    gate = asyncio.Event()

    async def slow(request):
        await gate.wait()
        return web.json_response({"choices": []})

    for worker in workers:
        worker.handler = slow
    picture = with_image(data_url(png()))
    asked = [asyncio.create_task(client.chat(picture)) for _ in range(12)]
    await until(lambda: sum(where(workers)) == 12)
    assert max(where(workers)) <= 6  # 1.25 times the mean, and one more
    gate.set()
    await asyncio.gather(*asked)


async def test_work_is_weighed_by_what_workers_measured(client, start_worker):
    slow, quick = await start_worker("w1", client), await start_worker("w2", client)
    for worker, cost in ((slow, 0.1), (quick, 0.001)):
        worker.silence()
        load = {"outstanding_tokens": 100, "prompt_token_seconds": cost / 10, "answer_token_seconds": cost}
        assert await worker.post(f"/{worker.id}/heartbeat", {"load": load}) == 204
    for _ in range(4):
        assert (await client.chat("hi"))[0] == 200
    assert where([slow, quick]) == [0, 4]


async def test_outstanding_prompt_tokens_weigh_less_than_an_answers(client, start_worker):
    prompts, answers = await start_worker("w1", client), await start_worker("w2", client)
    for worker, prompt_tokens in ((prompts, 1000), (answers, 0)):
        worker.silence()
        load = {"outstanding_tokens": 1000, "outstanding_prompt_tokens": prompt_tokens}
        assert await worker.post(f"/{worker.id}/heartbeat", {"load": load}) == 204
    for _ in range(3):
        assert (await client.chat("hi"))[0] == 200
    assert where([prompts, answers]) == [3, 0]
