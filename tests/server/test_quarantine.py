"""A request that kills its workers is not tried a third time, nor when it is sent again."""

from __future__ import annotations

import asyncio
import json

import pytest
import redis
from aiohttp import web

from server.state import EmbeddedValkey

POISON = "the words that kill"


@pytest.fixture
def town(start_worker):
    """Workers that answer everybody, and lose their connections where POISON is asked."""

    async def start(client, count):
        workers = []
        for _ in range(count):
            worker = await start_worker(f"w{len(client.controller.table)}", client)
            worker.handler = crash_at_poison(worker.handler)
            workers.append(worker)
        return workers

    return start


def crash_at_poison(answer):
    async def handle(request):
        if POISON in await request.text():
            request.transport.abort()
            return web.Response()
        return await answer(request)

    return handle


def poisoned(workers):
    return sum(POISON in json.dumps(body) for worker in workers for body in worker.bodies)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_at_which_two_workers_died_is_refused_from_then_on(client, town, stream):
    workers = await town(client, 4)
    status, body, headers = await client.chat(POISON, stream=stream)
    assert (status, body["error"]["code"]) == (422, "request_quarantined")
    assert f"{headers['Retry-After']} s" in body["error"]["message"]
    before = poisoned(workers)
    assert before <= 3  # one may have been asked twice: its connection might just have been idle for too long
    status, body, headers = await client.chat(POISON, stream=stream)
    assert (status, body["error"]["code"]) == (422, "request_quarantined")
    assert 0 < int(headers["Retry-After"]) <= 600
    assert poisoned(workers) == before
    assert (await client.chat("something else"))[0] == 200
    assert await client.metric("requests_quarantined_total") == 1
    assert await client.metric("quarantine_refusals_total") == 1
    assert client.controller.stats.recent[-2].error == "request_quarantined"


async def test_every_controller_refuses_it_and_forgets_it_in_time(start_controller, town, start_worker, until):
    first = await start_controller(quarantine_seconds=2.0)
    second = await start_controller(quarantine_seconds=2.0)
    workers = await town(first, 3)
    await until(lambda: len(second.controller.table) == 3)
    assert (await first.chat(POISON))[0] == 422
    before = poisoned(workers)
    await asyncio.sleep(0.2)  # the other reads every 0.05 s
    assert (await second.chat(POISON))[0] == 422
    assert poisoned(workers) == before
    await asyncio.sleep(2.1)
    assert (await second.chat(POISON))[0] == 422
    assert poisoned(workers) > before  # it was tried again


async def test_it_is_the_same_request_when_it_is_sent_again_to_the_one_worker_there_is(client, town, until):
    (worker,) = await town(client, 1)
    assert (await client.chat(POISON))[0] == 503
    worker.registration = lambda **_: {**type(worker).registration(worker), "started_at": 7.0}  # a new process
    assert await worker.post("", worker.registration()) == 200
    assert (await client.chat(POISON))[0] == 422
    assert (await client.chat("something else"))[0] == 200


async def test_a_request_that_is_answered_after_a_death_is_not_held_to_it(client, town):
    one, other = await town(client, 2)
    crashed = []

    def crash_once(answer):
        async def handle(request):
            if not crashed:
                crashed.append(request)
                request.transport.abort()
                return web.Response()
            return await answer(request)

        return handle

    for _ in range(4):
        crashed.clear()
        healthy = one.handler, other.handler
        one.handler, other.handler = map(crash_once, healthy)
        assert (await client.chat("harmless"))[0] == 200
        one.handler, other.handler = healthy
    assert await client.metric("requests_quarantined_total") == 0


async def test_no_jump_of_the_clock_of_redis_makes_it_last_longer(start_controller, town, until, redis_url):
    first = await start_controller(quarantine_seconds=2.0)
    second = await start_controller(quarantine_seconds=2.0)
    workers = await town(first, 3)
    await until(lambda: len(second.controller.table) == 3)
    assert (await first.chat(POISON))[0] == 422
    before = poisoned(workers)
    with redis.Redis.from_url(redis_url) as store:
        (digest, ends), *_ = store.zrange("tephra:poison", 0, -1, withscores=True)
        store.zadd("tephra:poison", {digest: ends + 3600})  # as it stands after the clock went back an hour
        await until(lambda: store.zscore("tephra:poison", digest) <= store.time()[0] + 3)
    await asyncio.sleep(2.5)
    assert (await second.chat(POISON))[0] == 422
    assert poisoned(workers) > before  # it was tried again


async def test_without_redis_a_controller_goes_by_what_it_knows_itself(start_controller, town):
    valkey = EmbeddedValkey()
    valkey.start()
    try:
        client = await start_controller(redis_url=valkey.url)
        workers = await town(client, 4)
        valkey.halt()
        assert (await client.chat(POISON))[0] == 422
        before = poisoned(workers)
        assert (await client.chat(POISON))[0] == 422
        assert poisoned(workers) == before
    finally:
        valkey.stop()


async def test_workers_that_refuse_or_cannot_be_reached_make_no_request_poisonous(client, start_worker):
    workers = [await start_worker(f"w{number}", client) for number in range(3)]

    async def refuse(request):
        return web.json_response({"error": {"message": "later", "type": "server_error"}}, status=503)

    for worker in workers:
        worker.handler = refuse
    for _ in range(3):
        assert (await client.chat("hi"))[0] == 503
    for worker in workers:
        await worker.close_port()
    for _ in range(3):
        assert (await client.chat("hi"))[0] == 503
    assert await client.metric("requests_quarantined_total") == 0
