"""An operator drains workers: every controller honours it, Redis may lose it, and "drained" means safe to stop."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
from aiohttp import web
from typer.testing import CliRunner

from deploy.cli import app

KEY = {"Authorization": "Bearer admin"}


async def act(client, worker, action, headers=KEY):
    status, body, _ = await client.post({}, f"/admin/workers/{worker}/{action}", headers)
    return status, body


async def state(client, worker="w1"):
    return client.controller.table.get(worker).state


async def test_draining_needs_the_admin_key_and_one_must_be_configured(start_controller, start_worker):
    client = await start_controller(admin_key="admin", api_keys=("key",))
    await start_worker("w1", client)
    for headers in ({}, {"Authorization": "Bearer key"}):
        assert (await act(client, "w1", "drain", headers))[0] == 401
    assert (await act(client, "nobody", "drain"))[0] == 404
    open_to_all = await start_controller()
    status, body = await act(open_to_all, "w1", "drain", {})
    assert (status, body["error"]["code"]) == (403, "admin_key_not_configured")
    assert not client.controller.table.get("w1").draining


async def test_every_controller_honours_a_drain_and_so_does_one_that_starts_later(
    start_controller, start_worker, until, caplog
):
    client, other = await start_controller(admin_key="admin"), await start_controller()
    drained, left = await start_worker("w1", client), await start_worker("w2", client)
    await until(lambda: len(other.controller.table) == 2)
    with caplog.at_level(logging.INFO, "tephra.server"):
        first = await act(client, "w1", "drain")
        assert await act(client, "w1", "drain") == first or first[0] == 200  # again: the same drain
    audits = [line.fields for line in caplog.records if line.message == "audit"]
    assert [(line["action"], line["worker"], line["outcome"]) for line in audits] == [("drain", "w1", "done")] * 2
    await until(lambda: other.controller.table.get("w1").draining)
    later = await start_controller()
    for asked in (client, other, later):
        for _ in range(3):
            assert (await asked.chat("hi"))[0] == 200
    assert (len(drained.bodies), len(left.bodies)) == (0, 9)
    since = {one.controller.table.get("w1").drain.since for one in (client, other, later)}
    assert len(since) == 1
    assert (await act(client, "w1", "undrain"))[0] == 200
    assert (await act(client, "w1", "undrain"))[0] == 200
    await until(lambda: not later.controller.table.get("w1").draining)
    assert await client.metric("admin_actions_total", action="drain", outcome="done") == 2


async def test_a_worker_is_drained_when_it_says_that_it_has_nothing_in_hand(start_controller, start_worker):
    client = await start_controller(admin_key="admin")
    worker = await start_worker("w1", client)
    worker.silence()
    await act(client, "w1", "drain")

    async def tell(in_hand, draining):
        return await worker.post("/w1/heartbeat", {"load": {"in_hand": in_hand}, "draining": draining})

    assert await tell(1, False) == 200  # with the wish in it
    assert await state(client) == "draining"
    assert await tell(0, False) == 200  # its door is open yet
    assert await state(client) == "draining"
    assert await tell(1, True) == 200  # another controller's request
    assert await state(client) == "draining"
    assert await tell(0, True) == 200
    assert await state(client) == "drained"
    (seen,) = (await client.get("/admin/workers", KEY))[1]["workers"]
    assert (seen["state"], seen["safe_to_stop"]) == ("drained", True)
    assert 'tephra:worker_state{state="drained",worker="w1"} 1.0' in (await client.get("/metrics"))[1]
    _, body = await act(client, "w1", "undrain")
    assert (body["state"], body["safe_to_stop"]) == ("draining", False)  # it may take requests at any moment
    assert await tell(0, True) == 204  # from before it heard
    assert await state(client) == "draining"
    assert await tell(0, False) == 204
    assert await state(client) == "healthy"


async def test_a_worker_that_drains_by_its_own_word_is_safe_to_stop_though_an_operator_took_his_back(
    start_controller, start_worker, until
):
    client = await start_controller(admin_key="admin")
    worker = await start_worker("w1", client)
    worker.silence()
    await act(client, "w1", "drain")
    assert await worker.post("/w1/heartbeat", {"load": {"in_hand": 0}, "draining": True}) == 200
    await act(client, "w1", "undrain")
    assert await state(client) == "draining"

    async def tell() -> bool:
        await worker.post("/w1/heartbeat", {"load": {"in_hand": 0}, "draining": True})
        return client.controller.table.get("w1").state == "drained"

    async with asyncio.timeout(10):
        while not await tell():
            await asyncio.sleep(0.02)


async def test_a_worker_that_does_not_count_is_drained_only_after_everybody_knows_and_nothing_runs(
    start_controller, start_worker, until
):
    client = await start_controller(admin_key="admin")
    worker = await start_worker("w1", client)
    gate = asyncio.Event()

    async def slow(request):
        await gate.wait()
        return web.json_response({"choices": []})

    worker.handler = slow
    asked = asyncio.create_task(client.chat("hi"))
    await until(lambda: worker.bodies)
    await act(client, "w1", "drain")
    await asyncio.sleep(0.5)
    assert await state(client) == "draining"
    gate.set()
    assert (await asked)[0] == 200
    worker.load = {"running": 1}  # somebody else's
    await asyncio.sleep(0.3)
    assert await state(client) == "draining"
    worker.load = {}
    await until(lambda: client.controller.table.get("w1").state == "drained")


async def test_a_drain_ends_with_the_process_that_leaves_in_good_order_but_not_with_one_that_was_lost(
    start_controller, start_worker, until
):
    client = await start_controller(admin_key="admin", lease_seconds=1.0)
    worker = await start_worker("w1", client)
    await act(client, "w1", "drain")
    worker.silence()
    await until(lambda: not len(client.controller.table))
    (lost,) = (await client.get("/admin/workers", KEY))[1]["lost"]
    assert (lost["id"], lost["state"]) == ("w1", "lost")
    await worker.join(client.url)
    assert client.controller.table.get("w1").draining
    await worker.leave()
    await worker.join(client.url)
    assert not client.controller.table.get("w1").draining


async def test_a_drain_outlives_the_redis_that_held_it(start_controller, start_worker, own_valkey, until):
    settings = {"redis_url": own_valkey.url, "admin_key": "admin"}
    client, other = await start_controller(**settings), await start_controller(**settings)
    await start_worker("w1", client)
    await until(lambda: len(other.controller.table) == 1)
    await act(client, "w1", "drain")
    own_valkey.halt()
    await until(lambda: not client.controller.membership.connected and not other.controller.membership.connected)
    assert client.controller.table.get("w1").draining
    status, body = await act(client, "w1", "undrain")
    assert (status, body["error"]["code"]) == (503, "unavailable")
    own_valkey.start()  # empty
    await until(lambda: client.controller.membership.connected and other.controller.membership.connected)
    late = await start_controller(**settings)
    await until(lambda: late.controller.table.get("w1") is not None and late.controller.table.get("w1").draining)
    assert (await act(late, "w1", "undrain"))[0] == 200
    await until(lambda: not any(one.controller.table.get("w1").draining for one in (client, other, late)))


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_a_clock_that_jumps_loses_no_worker(start_controller, start_worker, until, monkeypatch, jump):
    client = await start_controller(lease_seconds=1.0)
    other = await start_controller(lease_seconds=1.0)
    worker = await start_worker("w1", client)
    await until(lambda: len(other.controller.table) == 1)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    worker.controller = other.url
    for _ in range(8):
        await asyncio.sleep(0.2)
        assert len(client.controller.table) == len(other.controller.table) == 1
    assert (await client.chat("hi"))[0] == (await other.chat("hi"))[0] == 200
    late = await start_controller(lease_seconds=1.0)
    assert len(late.controller.table) == 1
    worker.silence()  # and nobody is kept for an hour either
    await until(lambda: not any(len(one.controller.table) for one in (client, other, late)))


async def test_the_command_drains_waits_and_takes_back(start_controller, start_worker):
    client = await start_controller(admin_key="admin")
    await start_worker("w1", client)

    async def tephra(*arguments):
        command = ["workers", *arguments, "--url", client.url, "--admin-key", "admin"]
        result = await asyncio.to_thread(CliRunner().invoke, app, command)
        return result.exit_code, result.output

    code, shown = await tephra("list")
    assert code == 0 and "w1" in shown
    assert await tephra("drain", "w1", "--wait") == (0, "w1: drained, safe to stop\n")
    assert await tephra("undrain", "w1") == (0, "w1: healthy\n")
    code, told = await tephra("drain", "nobody")
    assert code == 1 and "404" in told
