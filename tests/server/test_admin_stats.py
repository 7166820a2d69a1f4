"""What operators are told through /admin: figures over a window, where requests' time went, all processes as one."""

from __future__ import annotations

import asyncio
import stat
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from server.controller import Controller
from server.listen import ControllerServer, bind
from server.siblings import Seating
from server.snapshot import Snapshot, joined
from server.stats import Tally


async def stats(client, window: int = 60):
    status, body = await client.get(f"/admin/stats?window={window}")
    assert status == 200
    return body


async def test_a_streams_time_to_first_token_between_tokens_and_to_its_end_are_told(
    client, start_worker, open_stream, chunk
):
    worker = await start_worker("w1", client)

    async def dribble(request):
        response = await open_stream(request)
        for word in ("one ", "two ", "three "):
            await response.write(chunk(word))
            await asyncio.sleep(0.1)
        await response.write(chunk("", "stop") + b"data: [DONE]\n\n")
        return response

    worker.handler = dribble
    await client.stream("hi")
    told = await stats(client)
    assert told["inter_token_seconds"]["count"] == 2
    assert told["inter_token_seconds"]["p50"] > 0.05
    assert told["ttft_seconds"]["count"] == told["latency_seconds"]["count"] == 1
    assert told["latency_seconds"]["p50"] > told["ttft_seconds"]["p50"]
    (slow,) = told["slowest"]
    assert slow["phases"]["decode"] > 0.1
    assert (slow["worker"], slow["version"], slow["model"]) == ("w1", "v1", "demo")


async def test_what_a_worker_tells_of_its_queue_and_its_prefill_is_shown(client, start_worker):
    worker = await start_worker("w1", client)
    answer = worker.handler

    async def timed(request):
        await asyncio.sleep(0.3)
        response = await answer(request)
        response.headers["Server-Timing"] = 'cpu;dur=9, queue;dur=100.0, prefill;dur=50.5,decode;dur=20;desc="x"'
        return response

    worker.handler = timed
    assert (await client.chat())[0] == 200
    phases = (await stats(client))["recent"][0]["phases"]
    assert (phases["queue"], phases["prefill"]) == pytest.approx((0.1, 0.0505))
    assert phases["decode"] == 0.0  # it made no sense
    assert phases["worker"] > 0.1


async def test_errors_retries_and_refusals_are_counted_by_kind(start_controller, start_worker):
    client = await start_controller(max_inflight=1)
    first = await start_worker("w1", client)
    second = await start_worker("w2", client)
    answer, broken = first.handler, []

    async def once(request):
        if not broken:
            broken.append(1)
            request.transport.abort()
            return await answer(request)
        return await answer(request)

    first.handler = second.handler = once
    assert (await client.chat())[0] == 200
    assert (await client.chat(model="nobody"))[0] == 404
    assert (await client.chat(temperature="hot", stream="maybe"))[0] == 400
    held = asyncio.Event()

    async def wait(request):
        await held.wait()
        return await answer(request)

    first.handler = second.handler = wait
    asking = asyncio.create_task(client.chat())
    while client.controller.room.requests == 0:
        await asyncio.sleep(0.01)
    assert (await client.chat())[0] == 429
    held.set()
    assert (await asking)[0] == 200
    told = await stats(client)
    assert told["counts"]["requests"] == 5
    assert (told["counts"]["failed"], told["counts"]["refused_429"], told["counts"]["retries"]) == (3, 1, 1)
    assert told["counts"]["limits_hit"] == 0
    assert {error["status"]: error["count"] for error in told["errors"]} == {404: 1, 400: 1, 429: 1}
    assert all(error["request_id"] for error in told["errors"])


async def test_only_windows_that_are_kept_can_be_asked_for(client):
    for window in (60, 300, 900):
        assert (await stats(client, window))["window_seconds"] == window
    for window in ("61", "0", "-60", "1e9"):
        status, body = await client.get(f"/admin/stats?window={window}")
        assert status == 400
        assert body["error"]["param"] == "window"


async def test_a_workers_tokens_and_hit_rates_are_shown_and_unknown_ones_are_null(client, start_worker, until):
    worker = await start_worker("w1", client)
    (seen,) = (await client.get("/admin/workers"))[1]["workers"]
    assert seen["prefix_hit_rate"] is None
    worker.load = {"totals": {"prefix_queries": 100, "prefix_hits": 0}}
    known = client.controller.table.get("w1")
    await until(lambda: known.record.load.totals is not None)
    worker.load = {"totals": {"prefix_queries": 300, "prefix_hits": 150, "image_queries": 4, "image_hits": 1}}
    await until(lambda: known.record.load.totals.image_queries == 4)
    (seen,) = (await client.get("/admin/workers"))[1]["workers"]
    assert (seen["prefix_hit_rate"], seen["image_hit_rate"]) == (0.75, 0.25)


async def test_degraded_states_are_told(start_controller):
    told = await stats(await start_controller())
    assert (told["registry"], told["limits"], told["actions"]) == ("connected", "shared", False)
    assert told["workers"] == {"total": 0, "healthy": 0}
    assert told["processes"] == {"total": 1, "missing": []}


@pytest.fixture
async def two(start_controller, redis_url, tmp_path, session, stack: AsyncExitStack):
    """Two processes of one controller, but that they are one process of this machine."""
    one = await start_controller()  # for its settings, and to join at
    folder = tmp_path / "sockets"
    folder.mkdir(mode=0o700)
    clients = []
    for place in range(2):
        controller = Controller(replace(one.controller.settings, port=0), seating=Seating(place, 2, folder))
        server = ControllerServer(controller, bind("127.0.0.1", 0))
        await server.start()

        async def stop(server=server) -> None:
            server.stop()
            await server.wait()

        once = AsyncExitStack()
        once.push_async_callback(stop)
        stack.push_async_callback(once.aclose)
        client = type(one)(session, server, controller)
        client.stop = once.aclose
        clients.append(client)
    return clients


async def test_whichever_process_is_asked_it_answers_for_all(two, start_worker, until):
    worker = await start_worker("w1", two[0])
    await until(lambda: all(len(client.controller.table) == 1 for client in two))
    held, answer = asyncio.Event(), worker.handler
    assert (await two[0].chat())[0] == 200
    await two[1].stream()

    async def wait(request):
        await held.wait()
        return await answer(request)

    worker.handler = wait
    asking = [asyncio.create_task(client.chat()) for client in (*two, two[1])]
    await until(lambda: len(worker.bodies) == 5)
    for client in two:
        told = await stats(client)
        assert (told["requests_total"], told["in_flight"], len(told["recent"])) == (2, 3, 2)
        assert told["processes"] == {"total": 2, "missing": []}
        assert told["latency_seconds"]["count"] == 2
        (seen,) = (await client.get("/admin/workers"))[1]["workers"]
        assert (seen["in_flight"], seen["safe_to_stop"]) == (3, False)
    held.set()
    assert [status for status, *_ in await asyncio.gather(*asking)] == [200] * 3


async def test_a_process_that_is_gone_is_named_and_the_rest_is_told(two, tmp_path):
    await two[1].chat(model="nobody")
    socket = tmp_path / "sockets" / "1.sock"
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert (await stats(two[0]))["requests_total"] == 1
    await two[1].stop()
    told = await stats(two[0])
    assert told["processes"] == {"total": 2, "missing": [1]}
    assert told["requests_total"] == 0


async def test_a_process_that_hangs_or_talks_nonsense_is_named_in_bounded_time(two, tmp_path, stack):
    await two[1].stop()
    socket = tmp_path / "sockets" / "1.sock"

    async def hang(reader, writer):
        await asyncio.sleep(30)

    async def babble(reader, writer):
        writer.write(b"\xff" * 1000)
        writer.close()

    async def flood(reader, writer):
        while True:
            writer.write(b" " * 100_000)
            await writer.drain()

    for handler in (hang, babble, flood):
        server = await asyncio.start_unix_server(handler, socket)
        async with asyncio.timeout(10):
            assert (await stats(two[0]))["processes"] == {"total": 2, "missing": [1]}
        server.close()
        socket.unlink(missing_ok=True)


def test_seconds_of_processes_that_were_not_asked_in_the_same_second_are_added_where_they_belong():
    def one(second: int, counts: list[int]) -> Snapshot:
        history = {"requests": counts, "tokens": [0] * 60, "errors": [0] * 60}
        return Snapshot(0, 0, 0, 0, history, second, Tally(), [], [], {})

    told = joined([one(100, [0] * 58 + [5, 7]), one(101, [0] * 57 + [1, 2, 3])], 60)
    assert told["history"]["requests"][-3:] == [6, 9, 3]


async def test_joining_leaving_and_being_forgotten_are_counted_once_by_all_processes(two, start_worker, until):
    async def counted(event: str) -> float:
        return sum([await client.metric("registrations_total", event=event) for client in two])

    worker = await start_worker("w1", two[0])
    await until(lambda: all(len(client.controller.table) == 1 for client in two))
    assert await counted("joined") == 1
    await worker.post("", worker.registration())  # again, by whom it is known
    assert await counted("joined") == 1
    await worker.leave()
    await until(lambda: all(len(client.controller.table) == 0 for client in two))
    assert (await counted("left"), await counted("forgotten")) == (1, 0)
