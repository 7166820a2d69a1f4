"""Workers join with the secret, stay by reporting, and are forgotten when they do not; Redis may go and come back."""

from __future__ import annotations

import asyncio

import redis

from server.registry import costs
from server.routing.base import TokenCosts

LEASE = 1.0  # seconds; workers report ten times in it


async def test_a_worker_without_the_secret_does_not_join(client, start_worker):
    worker = await start_worker("w1")
    worker.controller = client.url
    assert await worker.post("", worker.registration(), secret="wrong") == 401
    assert await worker.post("", worker.registration(), secret="") == 401
    assert len(client.controller.table) == 0
    await worker.join(client.url)
    assert await worker.post("/w1/heartbeat", {"load": {}}, secret="wrong") == 401
    async with client.session.delete(f"{client.url}/internal/workers/w1") as response:
        assert response.status == 401
        assert (await response.json())["error"]["code"] == "invalid_worker_secret"
    assert len(client.controller.table) == 1


SENSELESS = [
    ("url", "ftp://127.0.0.1:1"),
    ("url", "http://user:pw@127.0.0.1:1"),
    ("url", "http://127.0.0.1:1/path"),
    ("url", "http://127.0.0.1:1?x"),
    ("url", "http://127.0.0.1:99999"),
    ("url", "http://0.0.0.0:8001"),
    ("url", "http://a\\b:1"),
    ("url", "http://"),
    ("worker_id", "a/b"),
    ("worker_id", ""),
    ("max_running", 0),
    ("model", {"name": "", "version": "v", "context_length": 1, "created": 1}),
    ("model", {"name": "m", "version": "v", "context_length": 0, "created": 1}),
    ("model", {"name": "m", "version": "v", "context_length": 9, "created": 1, "image": {"tile": 0, "grid": 1}}),
    ("load", "much"),
]


async def test_a_registration_that_makes_no_sense_is_refused(client, start_worker):
    worker = await start_worker("w1")
    worker.controller = client.url
    for field, value in SENSELESS:
        assert await worker.post("", worker.registration(**{field: value})) == 400, (field, value)
    assert len(client.controller.table) == 0


async def test_a_silent_worker_is_forgotten_and_may_come_back(start_controller, start_worker, until):
    client = await start_controller(lease_seconds=LEASE)
    worker = await start_worker("w1", client)
    assert (await client.get("/health/ready"))[0] == 200
    worker.silence()
    await until(lambda: len(client.controller.table) == 0)
    status, body = await client.get("/health/ready")
    assert (status, body["error"]["code"]) == (503, "unavailable")
    assert (await client.chat("hi"))[0] == 503  # known lately: out of reach, not unknown
    assert await worker.post("/w1/heartbeat", {"load": {}}) == 404
    await worker.join(client.url)
    assert (await client.chat("hi"))[0] == 200


async def test_a_worker_that_leaves_is_gone_at_once_everywhere(client, start_controller, start_worker, until):
    other = await start_controller()
    worker = await start_worker("w1", client)
    await until(lambda: len(other.controller.table) == 1)
    assert await worker.leave() == 204
    assert len(client.controller.table) == 0
    await until(lambda: len(other.controller.table) == 0)


async def test_controllers_share_their_workers(start_controller, start_worker, until):
    client = await start_controller(lease_seconds=LEASE)
    other = await start_controller(lease_seconds=LEASE)
    worker = await start_worker("w1", client)
    await until(lambda: len(other.controller.table) == 1)
    assert (await other.chat("hi"))[0] == 200
    worker.controller = other.url  # now it reports to the other one
    await asyncio.sleep(2 * LEASE)
    assert len(client.controller.table) == len(other.controller.table) == 1


async def test_an_unhealthy_worker_gets_no_requests(client, start_worker):
    worker = await start_worker("w1", client)
    worker.silence()
    assert await worker.post("/w1/heartbeat", {"load": {}, "healthy": False}) == 204
    assert (await client.chat("hi"))[0] == 503
    assert worker.bodies == []
    assert await worker.post("/w1/heartbeat", {"load": {}}) == 204
    assert (await client.chat("hi"))[0] == 200


async def test_without_redis_the_last_table_serves_and_it_recovers(start_controller, start_worker, own_valkey, until):
    client = await start_controller(redis_url=own_valkey.url, lease_seconds=LEASE)
    membership = client.controller.membership
    first = await start_worker("w1", client)
    silent = await start_worker("w2", client)
    own_valkey.halt()
    silent.silence()
    await until(lambda: not membership.connected)
    assert (await client.chat("hi"))[0] == 200
    status, ready = await client.get("/health/ready")
    assert (status, ready["status"], ready["registry"]) == (200, "degraded", "lost")
    assert await client.metric("registry_connected") == 0
    late = await start_worker("w3", client)  # joins while Redis is away
    await asyncio.sleep(2 * LEASE)  # longer than a lease: nobody is forgotten meanwhile
    assert len(client.controller.table) == 3
    own_valkey.start()  # empty
    await until(lambda: membership.connected)
    assert (await client.get("/health/ready"))[1]["status"] == "ready"
    assert (await client.chat("hi"))[0] == 200
    await until(lambda: [worker.id for worker in client.controller.table] == ["w1", "w3"])
    with redis.Redis.from_url(own_valkey.url) as state:
        assert state.smembers("tephra:workers") >= {b"w1", b"w3"}
    assert (first.controller, late.controller) == (client.url, client.url)


async def test_a_record_that_cannot_be_read_is_passed_over(client, start_worker, redis_url, until):
    with redis.Redis.from_url(redis_url) as state:
        state.set("tephra:worker:odd", b"{}")
        state.sadd("tephra:workers", "odd", "gone")
    await start_worker("w1", client)
    await until(lambda: client.controller.membership.connected)
    assert [worker.id for worker in client.controller.table] == ["w1"]
    with redis.Redis.from_url(redis_url) as state:
        await until(lambda: b"gone" not in state.smembers("tephra:workers"))


async def test_leases_do_not_hang_on_the_time_of_day_of_redis(start_controller, start_worker, redis_url, until):
    """Where its clock goes forward all leases seem over; where it goes back they hardly end."""
    client = await start_controller(lease_seconds=LEASE)
    other = await start_controller(lease_seconds=LEASE)
    worker = await start_worker("w1", client)
    await until(lambda: len(other.controller.table) == 1)
    known = other.controller.table.get("w1")
    with redis.Redis.from_url(redis_url) as store:
        for _ in range(20):
            store.delete("tephra:worker:w1")
            await asyncio.sleep(0.02)
        assert other.controller.table.get("w1") is known  # heard by way of Redis a moment ago
        await until(lambda: store.exists("tephra:worker:w1"))
        worker.silence()
        store.persist("tephra:worker:w1")
        for one in (client, other):
            await until(lambda one=one: len(one.controller.table) == 0)
        await asyncio.sleep(LEASE)
        assert store.exists("tephra:worker:w1")
        assert len(client.controller.table) == len(other.controller.table) == 0
        await worker.join(client.url)
        await until(lambda: len(other.controller.table) == 1)


async def test_what_a_worker_does_not_measure_anew_fades(client, start_worker, until, monkeypatch):
    monkeypatch.setattr(costs, "HALF_LIFE", 0.1)
    usual, stalled = await start_worker("w1"), await start_worker("w2")
    usual.load = {"prompt_token_seconds": 0.001, "answer_token_seconds": 0.01}
    stalled.load = {"prompt_token_seconds": 0.9, "answer_token_seconds": 9.0}
    for worker in (usual, stalled):
        await worker.join(client.url)
    table = client.controller.table
    assert table.get("w2").measure.costs == TokenCosts(0.9, 9.0)
    await until(lambda: table.get("w2").costs == table.get("w1").costs == TokenCosts(0.001, 0.01))
    stalled.load = {"prompt_token_seconds": 0.8, "answer_token_seconds": 8.0}
    await until(lambda: table.get("w2").costs != table.get("w1").costs)
