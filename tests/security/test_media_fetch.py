"""The fetcher against servers and names that mean harm: real sockets on loopback, DNS answers made here."""

from __future__ import annotations

import ast
import asyncio
from dataclasses import replace

import pytest
from aiohttp import web

from server.media.fetch import ImageFetcher, Resolve
from server.metrics import Metrics
from server.protocol.errors import ApiError, overloaded
from server.settings import Settings

OPEN = Settings(media_allow_private=True, media_ports="*", media_seconds=5.0, max_image_bytes=100_000)


@pytest.fixture
async def harm(open_origin):
    """A server on loopback: (port, paths asked for, set when a connection to /endless was cut)."""

    async def drip(request):
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b".")
            await asyncio.sleep(0.02)

    async def answer(request):
        match request.path:
            case "/ok":
                return web.Response(body=b"bytes")
            case "/echo":
                return web.Response(body=repr(sorted(request.headers)).encode())
            case "/drip":
                return await drip(request)
            case "/silent":
                await asyncio.sleep(30)
            case "/gzip":
                return web.Response(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
            case "/lies":
                return web.Response(body=b"", headers={"Content-Length": "100000000"})
        raise web.HTTPFound(request.query["to"])

    opened = await open_origin(answer)
    return opened.port, opened.asked, opened.cut


async def nowhere(host: str, port: int) -> list[str]:
    raise OSError("no such host")


async def refused(settings: Settings, url: str, names: Resolve = nowhere) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await ImageFetcher(settings, Metrics(), names).fetch(url)
    assert caught.value.status in (400, 413)
    return caught.value


async def test_bytes_come_back(harm):
    port, _, _ = harm
    assert await ImageFetcher(OPEN, Metrics()).fetch(f"http://127.0.0.1:{port}/ok") == b"bytes"


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.1.2.3"], ["169.254.169.254"], ["::1"], ["::ffff:127.0.0.1"], ["1.1.1.1", "127.0.0.1"]],
)
async def test_a_name_that_leads_inside_is_refused_without_a_connection(new_names, harm, addresses):
    port, asked, _ = harm
    names = new_names(pictures_test=[addresses])
    error = await refused(replace(OPEN, media_allow_private=False), f"http://pictures.test:{port}/ok", names)
    assert error.code == "image_url_not_allowed"
    assert not any(address in error.message for address in addresses)
    assert asked == []


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "0.0.0.0", "[::]"])
async def test_an_address_that_leads_inside_is_refused_without_a_connection(harm, host):
    port, asked, _ = harm
    error = await refused(replace(OPEN, media_allow_private=False), f"http://{host}:{port}/ok")
    assert error.code == "image_url_not_allowed"
    assert asked == []


async def test_a_name_is_asked_once_and_the_connection_goes_where_it_was_checked(new_names, harm):
    """A name that turns round between check and use (DNS rebinding) has nothing to turn."""
    port, asked, _ = harm
    names = new_names(pictures_test=[["127.0.0.1"], ["169.254.169.254"]])
    assert await ImageFetcher(OPEN, Metrics(), names).fetch(f"http://pictures.test:{port}/ok") == b"bytes"
    assert names.asked == ["pictures.test"]
    assert asked == ["/ok"]


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("http://169.254.169.254/latest/meta-data/", "image_url_not_allowed"),
        ("http://metadata.test/", "image_url_not_allowed"),
        ("//metadata.test/", "image_url_not_allowed"),
        ("http://[fd00:ec2::254]/", "image_url_not_allowed"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("http://user:pw@pictures.test/", "invalid_image_url"),
        ("http://2852039166/", "invalid_image_url"),
        ("data:image/png;base64,AAAA", "invalid_image_url"),
    ],
)
async def test_each_redirect_is_held_to_the_same_rules(new_names, harm, target, code):
    port, asked, _ = harm
    names = new_names(pictures_test=[["127.0.0.1"]], metadata_test=[["169.254.169.254"]])
    error = await refused(OPEN, f"http://pictures.test:{port}/to?to={target}", names)
    assert error.code == code
    assert asked == ["/to"]


async def test_redirects_are_followed_a_bounded_number_of_times(new_names, harm):
    port, asked, _ = harm
    loop = "/to?to=/to%3Fto=/ok"
    names = new_names(pictures_test=[["127.0.0.1"]])
    assert await ImageFetcher(OPEN, Metrics(), names).fetch(f"http://pictures.test:{port}{loop}") == b"bytes"
    asked.clear()
    error = await refused(replace(OPEN, media_redirects=1), f"http://pictures.test:{port}{loop}", names)
    assert error.code == "image_fetch_failed"
    assert len(asked) == 2


async def test_a_body_without_end_is_cut_at_the_cap(harm):
    port, _, cut = harm
    error = await refused(OPEN, f"http://127.0.0.1:{port}/endless")
    assert error.status == 413
    await asyncio.wait_for(cut.wait(), 10)


async def test_a_length_that_is_announced_too_large_is_not_read(harm):
    port, _, _ = harm
    assert (await refused(OPEN, f"http://127.0.0.1:{port}/lies")).status == 413


@pytest.mark.parametrize("path", ["/drip", "/silent"])
async def test_a_slow_server_is_given_up(harm, path):
    port, _, _ = harm
    error = await refused(replace(OPEN, media_seconds=0.4), f"http://127.0.0.1:{port}{path}")
    assert error.code == "image_fetch_failed"


async def test_a_resolver_that_hangs_is_given_up():
    async def hang(host: str, port: int) -> list[str]:
        await asyncio.sleep(30)
        return []

    with pytest.raises(ApiError):
        await ImageFetcher(replace(OPEN, media_seconds=0.2), Metrics(), hang).fetch("http://pictures.test/")


async def test_compressed_bodies_are_refused(harm):
    port, _, _ = harm
    assert (await refused(OPEN, f"http://127.0.0.1:{port}/gzip")).code == "image_fetch_failed"


async def test_nothing_of_ours_is_sent_along(harm, monkeypatch):
    """No cookies, no authorization, no proxy of the environment."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    port, _, _ = harm
    body = await ImageFetcher(OPEN, Metrics()).fetch(f"http://127.0.0.1:{port}/echo")
    assert ast.literal_eval(body.decode()) == ["Accept", "Accept-Encoding", "Connection", "Host", "User-Agent"]


async def test_fetches_at_once_are_bounded(harm):
    port, asked, _ = harm
    fetcher = ImageFetcher(replace(OPEN, media_concurrency=2, media_seconds=60), Metrics())
    fetches = [asyncio.create_task(fetcher.fetch(f"http://127.0.0.1:{port}/silent")) for _ in range(6)]
    async with asyncio.timeout(30):
        while len(asked) < 2:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)  # time enough for the others, if they were let
    assert len(asked) == 2
    for fetch in fetches:
        fetch.cancel()
    ends = await asyncio.gather(*fetches, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)


async def test_bytes_are_reserved_before_they_are_kept(harm):
    port, _, cut = harm
    taken: list[int] = []

    def reserve(size: int) -> None:
        taken.append(size)
        if sum(taken) > 50_000:
            raise overloaded("full", 1)

    with pytest.raises(ApiError) as caught:
        await ImageFetcher(OPEN, Metrics()).get(f"http://127.0.0.1:{port}/endless", reserve)
    assert caught.value.status == 429
    await asyncio.wait_for(cut.wait(), 10)
