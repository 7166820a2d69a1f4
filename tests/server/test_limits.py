"""Limits of keys: held over all controllers by Redis, settled by what was used, and held without Redis too."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
import redis
from aiohttp import web

from server.auth.keys_file import new_key
from server.limits.answers import duration
from server.state import EmbeddedValkey


@pytest.fixture
def make_key(tmp_path: Path):
    """A new key with these limits, and the headers that carry it."""
    file = tmp_path / "keys.jsonl"
    file.touch()

    def make(name: str = "acme", **limits: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {new_key(file, name, **limits)}"}

    make.file = str(file)  # type: ignore[attr-defined]
    return make


@pytest.fixture
def valkey():
    """One that a test may take away."""
    valkey = EmbeddedValkey()
    valkey.start()
    yield valkey
    valkey.stop()


def of_answer(usage: tuple[int, int]):
    """A worker that reports so many tokens of prompt and answer."""

    async def answer(request):
        prompt, completion = usage
        tokens = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return web.json_response({"choices": [], "usage": tokens})

    return answer


async def test_requests_beyond_the_limit_are_429_on_every_controller(start_controller, start_worker, make_key):
    key = make_key(requests_per_minute=5)
    clients = [await start_controller(keys_file=make_key.file) for _ in range(3)]
    worker = await start_worker("w1", clients[0])
    for client in clients[1:]:
        await worker.join(client.url)
    answers = await asyncio.gather(*(clients[turn % 3].chat("hi", headers=key) for turn in range(12)))
    assert sorted(status for status, _, _ in answers) == [200] * 5 + [429] * 7
    for status, body, headers in answers:
        assert headers["x-ratelimit-limit-requests"] == "5"
        assert re.fullmatch(r"\d+(ms|s)|\d+m\d+s", headers["x-ratelimit-reset-requests"])
        if status == 429:
            assert body["error"]["code"] == "rate_limit_exceeded"
            assert "5 requests a minute" in body["error"]["message"]
            assert 1 <= int(headers["Retry-After"]) <= 60
            assert headers["x-ratelimit-remaining-requests"] == "0"
    assert len(worker.bodies) == 5
    assert sum([await client.metric("rate_limited_total", limit="requests") for client in clients]) == 7


async def test_a_key_does_not_feel_anothers_limits(start_controller, start_worker, make_key):
    first, second, free = make_key("a", requests_per_minute=1), make_key("b", requests_per_minute=1), make_key("c")
    client = await start_controller(keys_file=make_key.file)
    await start_worker("w1", client)
    assert [(await client.chat("hi", headers=first))[0] for _ in range(2)] == [200, 429]
    assert (await client.chat("hi", headers=second))[0] == 200
    for _ in range(3):
        status, _, headers = await client.chat("hi", headers=free)
        assert status == 200
        assert not any(name.lower().startswith("x-ratelimit") for name in headers)


async def test_tokens_are_set_aside_by_estimate_and_settled_by_use(start_controller, start_worker, make_key, until):
    key = make_key(tokens_per_minute=1000)
    client = await start_controller(keys_file=make_key.file)
    worker = await start_worker("w1", client)
    worker.handler = of_answer((20, 30))
    _, _, headers = await client.chat("hi", max_tokens=800, headers=key)
    assert int(headers["x-ratelimit-remaining-tokens"]) < 200  # what it may cost at most
    await until(lambda: not client.controller.limiter.settling)
    status, _, headers = await client.chat("hi", max_tokens=800, headers=key)
    assert status == 200, "what was not used was not given back"
    await until(lambda: not client.controller.limiter.settling)
    worker.handler = of_answer((600, 700))
    assert (await client.chat("hi", max_tokens=10, headers=key))[0] == 200
    await until(lambda: not client.controller.limiter.settling)
    status, body, headers = await client.chat("hi", max_tokens=10, headers=key)
    assert status == 429, "what was used beyond the estimate was not charged"
    assert "tokens a minute" in body["error"]["message"]
    assert int(headers["Retry-After"]) > 10


async def test_a_request_that_no_wait_would_help_says_so(start_controller, start_worker, make_key):
    key = make_key(tokens_per_minute=100)
    client = await start_controller(keys_file=make_key.file)
    await start_worker("w1", client)
    status, body, headers = await client.chat("hi", max_tokens=500, headers=key)
    assert status == 429
    assert "alone needs" in body["error"]["message"]
    assert headers["x-should-retry"] == "false"
    assert "Retry-After" not in headers
    assert headers["x-ratelimit-remaining-tokens"] == "100"


@pytest.mark.parametrize("status", [400, 503])
async def test_what_no_worker_computed_costs_no_tokens(start_controller, start_worker, make_key, until, status):
    key = make_key(tokens_per_minute=1000)
    client = await start_controller(keys_file=make_key.file)
    worker = await start_worker("w1", client)

    async def refuse(request):
        return web.json_response({"error": {"message": "no", "type": "t"}}, status=status)

    worker.handler = refuse
    for _ in range(3):
        assert (await client.chat("hi", max_tokens=900, headers=key))[0] == status
        await until(lambda: not client.controller.limiter.settling)


async def test_a_stream_that_is_left_is_charged_for_what_it_told(
    start_controller, start_worker, make_key, until, open_stream, chunk
):
    key = make_key(tokens_per_minute=1000)
    client = await start_controller(keys_file=make_key.file)
    worker = await start_worker("w1", client)

    async def endless(request):
        response = await open_stream(request)
        while True:
            await response.write(chunk("word "))
            await asyncio.sleep(0.005)

    worker.handler = endless
    body = {"model": "demo", "stream": True, "max_tokens": 800, "messages": [{"role": "user", "content": "hi"}]}
    async with client.session.post(client.url + "/v1/chat/completions", json=body, headers=key) as response:
        for _ in range(20):
            await response.content.readuntil(b"\n\n")
    await until(lambda: client.controller.room.requests == 0 and not client.controller.limiter.settling)
    worker.handler = of_answer((1, 1))
    _, _, headers = await client.chat("hi", max_tokens=1, headers=key)
    assert 500 < int(headers["x-ratelimit-remaining-tokens"]) < 980


async def test_pictures_are_counted_by_number_and_by_their_tokens(
    start_controller, start_worker, make_key, png, data_url, with_image, until
):
    key = make_key(images_per_minute=3, tokens_per_minute=10_000)
    client = await start_controller(keys_file=make_key.file)
    await start_worker("w1", client)
    plain = int((await client.chat("hi", max_tokens=1, headers=key))[2]["x-ratelimit-remaining-tokens"])
    await until(lambda: not client.controller.limiter.settling)
    pictures = with_image(data_url(png())) + with_image(data_url(png(50, 50)))
    status, _, headers = await client.chat(pictures, max_tokens=1, headers=key)
    assert status == 200
    assert headers["x-ratelimit-remaining-images"] == "1"
    assert int(headers["x-ratelimit-remaining-tokens"]) < plain - 8  # two pictures of four patches and more
    status, body, _ = await client.chat(pictures, max_tokens=1, headers=key)
    assert status == 429
    assert "images a minute" in body["error"]["message"]


async def test_requests_under_way_at_once_are_bounded_over_all_controllers(
    start_controller, start_worker, make_key, until
):
    key = make_key(concurrent=2)
    clients = [await start_controller(keys_file=make_key.file) for _ in range(2)]
    worker = await start_worker("w1", clients[0])
    await worker.join(clients[1].url)
    gate = asyncio.Event()

    async def slow(request):
        await gate.wait()
        return web.json_response({"choices": []})

    worker.handler = slow
    held = [asyncio.create_task(client.chat("hi", headers=key)) for client in clients]
    await until(lambda: len(worker.bodies) == 2)
    for client in clients:
        status, body, headers = await client.chat("hi", headers=key)
        assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "2 at once" in body["error"]["message"]
        assert headers["Retry-After"]
    gate.set()
    assert [status for status, _, _ in await asyncio.gather(*held)] == [200, 200]
    await until(lambda: not any(client.controller.limiter.settling for client in clients))
    assert (await clients[0].chat("hi", headers=key))[0] == 200


async def test_a_place_is_free_again_when_its_client_leaves(hang, start_controller, start_worker, make_key, until):
    key = make_key(concurrent=1)
    client = await start_controller(keys_file=make_key.file)
    worker = await start_worker("w1", client)
    healthy = worker.handler

    worker.handler = hang
    left = asyncio.create_task(client.chat("hi", headers=key))
    await until(lambda: len(worker.bodies) == 1)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    worker.handler = healthy
    await until(lambda: client.controller.room.requests == 0 and not client.controller.limiter.settling)
    assert (await client.chat("hi", headers=key))[0] == 200


async def test_places_of_a_controller_that_died_become_free(start_controller, start_worker, make_key, redis_url):
    key = make_key(concurrent=2)
    client = await start_controller(keys_file=make_key.file)
    await start_worker("w1", client)
    with redis.Redis.from_url(redis_url) as store:
        store.zadd("tephra:leases:{acme}", {"dead-1": 1, "dead-2": 2})  # ended long ago by the server's clock
        assert (await client.chat("hi", headers=key))[0] == 200
        seconds, _ = store.time()
        store.zadd("tephra:leases:{acme}", {"alive-1": (seconds + 60) * 1000, "alive-2": (seconds + 60) * 1000})
    assert (await client.chat("hi", headers=key))[0] == 429


async def test_without_redis_each_controller_holds_the_limits_from_where_they_stood(
    start_controller, start_worker, make_key, valkey, until
):
    key = make_key(requests_per_minute=4)
    client = await start_controller(keys_file=make_key.file, redis_url=valkey.url)
    await start_worker("w1", client)
    assert [(await client.chat("hi", headers=key))[0] for _ in range(2)] == [200, 200]
    valkey.halt()
    answers = [await client.chat("hi", headers=key) for _ in range(4)]
    assert [status for status, _, _ in answers] == [200, 200, 429, 429]
    assert client.controller.limiter.state == "local"
    assert await client.metric("limits_shared") == 0
    status, ready = await client.get("/health/ready")
    assert (status, ready["status"], ready["limits"]) == (200, "degraded", "local")
    valkey.start()
    await until(lambda: client.controller.limiter.state == "shared")
    assert await client.metric("limits_shared") == 1
    assert (await client.chat("hi", headers=key))[0] == 200  # the store came back empty


async def test_without_redis_limits_may_refuse_and_keys_without_limits_go_on(
    start_controller, start_worker, make_key, valkey
):
    key, free = make_key("acme", requests_per_minute=100), make_key("free")
    client = await start_controller(keys_file=make_key.file, redis_url=valkey.url, limits_without_redis="refuse")
    await start_worker("w1", client)
    assert (await client.chat("hi", headers=key))[0] == 200
    valkey.halt()
    status, body, headers = await client.chat("hi", headers=key)
    assert (status, body["error"]["code"]) == (503, "limits_unavailable")
    assert headers["Retry-After"]
    assert (await client.chat("hi", headers=free))[0] == 200
    assert client.controller.limiter.state == "refusing"


async def test_a_redis_that_forgot_its_scripts_is_taught_again(start_controller, start_worker, make_key, redis_url):
    key = make_key(requests_per_minute=5)
    client = await start_controller(keys_file=make_key.file)
    await start_worker("w1", client)
    assert (await client.chat("hi", headers=key))[0] == 200
    with redis.Redis.from_url(redis_url) as store:
        store.script_flush()
    _, _, headers = await client.chat("hi", headers=key)
    assert headers["x-ratelimit-remaining-requests"] == "3"
    assert client.controller.limiter.state == "shared"


async def test_limits_fill_by_the_clock_of_redis_alone(start_controller, start_worker, make_key, redis_url):
    key = make_key(requests_per_minute=2)
    client = await start_controller(keys_file=make_key.file)
    await start_worker("w1", client)
    assert [(await client.chat("hi", headers=key))[0] for _ in range(3)] == [200, 200, 429]
    with redis.Redis.from_url(redis_url) as store:
        at = int(store.hget("tephra:limits:{acme}", "at"))
        assert abs(at / 1000 - store.time()[0]) < 60
        store.hset("tephra:limits:{acme}", "at", at + 3_600_000)  # the server's own clock went back an hour
        assert (await client.chat("hi", headers=key))[0] == 429
        at = int(store.hget("tephra:limits:{acme}", "at"))
        assert abs(at / 1000 - store.time()[0]) < 60  # it fills by the new time from now on
        store.hset("tephra:limits:{acme}", "at", at - 60_000)
    assert (await client.chat("hi", headers=key))[0] == 200


async def test_places_of_the_dead_become_free_after_a_lease_although_the_clock_of_redis_went_back(
    start_controller, start_worker, make_key, redis_url
):
    key = make_key(concurrent=1)
    client = await start_controller(keys_file=make_key.file)
    await start_worker("w1", client)
    with redis.Redis.from_url(redis_url) as store:
        seconds, _ = store.time()
        store.zadd("tephra:leases:{acme}", {"dead": (seconds + 3600) * 1000})
        assert (await client.chat("hi", headers=key))[0] == 429
        (_, ends), *others = store.zrange("tephra:leases:{acme}", 0, -1, withscores=True)
        assert not others and ends / 1000 - store.time()[0] <= 5 * client.controller.settings.lease_seconds + 1


async def test_streams_carry_the_headers_too(start_controller, start_worker, make_key):
    key = make_key(requests_per_minute=5)
    client = await start_controller(keys_file=make_key.file)
    await start_worker("w1", client)
    body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    async with client.session.post(client.url + "/v1/chat/completions", json=body, headers=key) as response:
        assert response.headers["x-ratelimit-remaining-requests"] == "4"
        assert json.loads((await response.text()).split("\n\n")[0].removeprefix("data: "))


def test_times_are_told_as_openai_tells_them():
    assert [duration(seconds) for seconds in (0, 0.0204, 0.9999, 1, 11.2, 60, 359.5)] == [
        "0ms",
        "21ms",
        "1000ms",
        "1s",
        "12s",
        "1m0s",
        "6m0s",
    ]
