"""Which worker is chosen, what happens when one fails, and that a client's leaving reaches the worker."""

from __future__ import annotations

import asyncio
import json
import time

import aiohttp
import pytest
from aiohttp import web


async def test_work_goes_where_the_least_is_outstanding(client, start_worker, until):
    gate = asyncio.Event()

    async def slow(request):
        await gate.wait()
        return web.json_response({"choices": []})

    first, second = await start_worker("w1", client), await start_worker("w2", client)
    first.handler = second.handler = slow
    long = asyncio.create_task(client.chat("hi", max_tokens=1000))
    await until(lambda: len(first.bodies) + len(second.bodies) == 1)
    busy, free = (first, second) if first.bodies else (second, first)
    short = [asyncio.create_task(client.chat("hi", max_tokens=10)) for _ in range(4)]
    await until(lambda: len(free.bodies) == 4)
    assert len(busy.bodies) == 1
    gate.set()
    assert [status for status, _, _ in await asyncio.gather(long, *short)] == [200] * 5
    assert all(worker.in_flight == worker.outstanding_tokens == 0 for worker in client.controller.table)


async def test_load_that_other_controllers_put_on_a_worker_counts(client, start_worker):
    first, second = await start_worker("w1", client), await start_worker("w2", client)
    first.silence()
    assert await first.post("/w1/heartbeat", {"load": {"running": 8, "outstanding_tokens": 50_000}}) == 204
    for _ in range(3):
        assert (await client.chat("hi"))[0] == 200
    assert (len(first.bodies), len(second.bodies)) == (0, 3)


@pytest.mark.parametrize("routing", ["least-outstanding", "round-robin"])
async def test_idle_workers_share_the_requests(start_controller, start_worker, routing):
    client = await start_controller(routing=routing)
    workers = [await start_worker(f"w{number}", client) for number in range(3)]
    for _ in range(6):
        assert (await client.chat("hi"))[0] == 200
    assert [len(worker.bodies) for worker in workers] == [2, 2, 2]


async def test_a_worker_that_refuses_connections_is_passed_over_and_the_request_goes_on(client, start_worker):
    dead, alive = await start_worker("w1", client), await start_worker("w2", client)
    await dead.close_port()
    for _ in range(6):
        assert (await client.chat("hi"))[0] == 200
    assert len(alive.bodies) == 6
    assert await client.metric("retries_total", reason="connect") == 1
    assert await client.metric("worker_requests_total", worker="w1", outcome="unreachable") == 1


async def test_a_worker_that_dies_before_its_answer_loses_no_request(hang, client, start_worker, until):
    first, second = await start_worker("w1", client), await start_worker("w2", client)
    survivor_handler = first.handler

    first.handler = second.handler = hang
    asked = [asyncio.create_task(client.chat("hi")) for _ in range(4)]
    streamed = [asyncio.create_task(client.stream("hi")) for _ in range(4)]
    await until(lambda: len(first.bodies) == len(second.bodies) == 4)
    second.handler = survivor_handler
    await first.die()
    # What the survivor already hangs on is not at issue: only its new requests are answered.
    done = asked + streamed
    await until(lambda: len(second.bodies) == 8)
    await until(lambda: sum(task.done() for task in done) == 4)
    for task in done:
        if task.done():
            result = task.result()
            assert result[0] == 200 or result[-1] == "[DONE]"
        else:
            task.cancel()
    await asyncio.gather(*done, return_exceptions=True)


async def test_a_worker_that_dies_with_very_many_requests_in_hand_loses_none_of_them(
    hang, start_controller, start_worker, until
):
    client = await start_controller(connect_seconds=30)
    crowded = await start_worker("w1", client)

    crowded.handler = hang
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as wide:
        crowd = type(client)(wide, client.server, client.controller)
        asked = [asyncio.create_task(crowd.chat("hi")) for _ in range(150)]
        await until(lambda: len(crowded.bodies) == 150, 60)
        rescue = await start_worker("w2", client)
        await crowded.die()
        assert {status for status, _, _ in await asyncio.gather(*asked)} == {200}
    assert len(rescue.bodies) == 150


async def test_repeats_are_a_share_of_the_traffic_once_a_workers_worth_of_them_is_used_up(
    start_controller, start_worker
):
    client = await start_controller(max_inflight=3)
    workers = [await start_worker(f"w{number}", client) for number in range(3)]

    async def overloaded(request):
        return web.json_response({"error": {"message": "later", "type": "server_error"}}, status=503)

    for worker in workers:
        worker.handler = overloaded
    began = time.monotonic()
    answers = [await client.chat("hi") for _ in range(100)]
    seconds = time.monotonic() - began
    assert {status for status, _, _ in answers} == {503}
    repeats = sum(len(worker.bodies) for worker in workers) - 100  # 200 if all were tried three times
    assert 20 <= repeats <= 3 + 20 + seconds + 1  # what it begins with, a fifth of the requests, one a second


async def test_a_worker_that_closes_its_connection_is_asked_once_more_when_alone(client, start_worker):
    worker = await start_worker("w1", client)
    healthy = worker.handler

    async def close_first(request):
        if len(worker.bodies) == 1:
            request.transport.abort()
        return await healthy(request)

    worker.handler = close_first
    assert (await client.chat("hi"))[0] == 200
    assert len(worker.bodies) == 2


async def test_a_request_that_no_worker_can_answer_is_tried_a_bounded_number_of_times(client, start_worker):
    workers = [await start_worker(f"w{number}", client) for number in range(5)]

    async def garble(request):
        return web.Response(text="<html>")

    for worker in workers:
        worker.handler = garble
    status, body, headers = await client.chat("hi")
    assert (status, body["error"]["type"]) == (503, "server_error")
    assert "Retry-After" in headers
    assert sum(len(worker.bodies) for worker in workers) == 3


async def test_a_wait_for_a_worker_ends_when_its_lease_does(hang, start_controller, start_worker, until):
    client = await start_controller(lease_seconds=1.0)
    frozen = await start_worker("w1", client)

    frozen.handler = hang
    asked = asyncio.create_task(client.chat("hi"))
    await until(lambda: len(frozen.bodies) == 1)
    rescue = await start_worker("w2", client)
    frozen.silence()
    status, _, _ = await asked
    assert status == 200
    assert len(rescue.bodies) == 1
    assert await client.metric("retries_total", reason="lease_lost") == 1


async def test_a_stream_whose_worker_dies_ends_with_an_error_event(client, start_worker, open_stream, chunk):
    worker = await start_worker("w1", client)

    async def break_off(request):
        response = await open_stream(request)
        await response.write(chunk("one ") + b'data: {"choices": [{"ind')
        await asyncio.sleep(0.1)
        request.transport.abort()
        return response

    worker.handler = break_off
    events = await client.stream("hi")
    assert json.loads(events[0])["choices"][0]["delta"]["content"] == "one "
    assert json.loads(events[1])["error"]["code"] == "stream_broken"
    assert len(events) == 2
    recent = client.controller.stats.recent[-1]
    assert (recent.status, recent.ended, recent.error) == (200, "broken", "stream_broken")


async def test_a_stream_that_ends_without_an_end_is_no_success(client, start_worker, open_stream, chunk):
    worker = await start_worker("w1", client)

    async def stop_short(request):
        response = await open_stream(request)
        await response.write(chunk("one "))
        return response

    worker.handler = stop_short
    assert json.loads((await client.stream("hi"))[-1])["error"]["code"] == "stream_broken"


async def test_a_stream_that_stalls_is_ended(start_controller, start_worker, open_stream, chunk):
    client = await start_controller(stall_seconds=0.3)
    worker = await start_worker("w1", client)

    async def stall(request):
        response = await open_stream(request)
        await response.write(chunk("one "))
        await asyncio.sleep(30)
        return response

    worker.handler = stall
    assert "error" in json.loads((await client.stream("hi"))[-1])
    await asyncio.wait_for(worker.abandoned.wait(), 10)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_the_work(client, start_worker, until, open_stream, chunk, stream):
    worker = await start_worker("w1", client)

    async def work(request):
        if not stream:
            await asyncio.sleep(30)
            return web.json_response({})
        response = await open_stream(request)
        while True:
            await response.write(chunk("word "))
            await asyncio.sleep(0.02)

    worker.handler = work
    body = {"model": "demo", "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
    session = aiohttp.ClientSession()
    asked = asyncio.create_task(session.post(client.url + "/v1/chat/completions", json=body))
    if stream:
        response = await asked
        await response.content.readany()
    else:
        await until(lambda: len(worker.bodies) == 1)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    await session.close()
    if stream:
        response.close()
    await asyncio.wait_for(worker.abandoned.wait(), 10)
    await until(lambda: client.controller.room.requests == 0)
    assert client.controller.stats.recent[-1].ended == "client_left"
    assert await client.metric("client_disconnects_total") == 1
    assert await client.metric("worker_requests_total", worker="w1", outcome="abandoned") == 1
    assert client.controller.table.get("w1").in_flight == 0


async def test_a_client_that_closes_at_the_end_mark_has_had_its_answer(client, start_worker, until, open_stream, chunk):
    """As OpenAI's does, which does not wait for the connection's own end."""
    worker = await start_worker("w1", client)

    async def slow_to_end(request):
        response = await open_stream(request)
        await response.write(chunk("word", "stop") + b"data: [DONE]\n\n")
        await asyncio.sleep(30)
        return response

    worker.handler = slow_to_end
    body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    async with aiohttp.ClientSession() as session:
        response = await session.post(client.url + "/v1/chat/completions", json=body)
        while b"[DONE]" not in await response.content.readline():
            pass
        response.close()
    await until(lambda: client.controller.room.requests == 0)
    assert client.controller.stats.recent[-1].ended == "complete"
    assert await client.metric("client_disconnects_total") == 0


@pytest.mark.parametrize("status", [400, 404, 429, 500])
async def test_a_workers_error_in_the_known_shape_passes_through(client, start_worker, status):
    worker = await start_worker("w1", client)
    error = {"error": {"message": "so and so", "type": "t", "param": "p", "code": "c"}}

    async def refuse(request):
        return web.json_response(error, status=status, headers={"Retry-After": "7", "X-Secret": "s"})

    worker.handler = refuse
    answered, body, headers = await client.chat("hi")
    assert (answered, body) == (status, error)
    assert headers["Retry-After"] == "7"
    assert "X-Secret" not in headers
    assert client.controller.stats.recent[-1].error == "c"
    assert len(worker.bodies) == 1


async def test_a_worker_that_has_no_room_is_left_for_another(client, start_worker):
    full, free = await start_worker("w1", client), await start_worker("w2", client)

    async def refuse(request):
        return web.json_response({"error": {"message": "draining"}}, status=503)

    full.handler = refuse
    for _ in range(4):
        assert (await client.chat("hi"))[0] == 200
    assert len(free.bodies) == 4
    free.handler = refuse
    status, body, _ = await client.chat("hi")
    assert (status, body["error"]["message"]) == (503, "draining")


@pytest.mark.parametrize(
    "garbage",
    [
        {"status": 200, "text": "<html>", "content_type": "text/html"},
        {"status": 401, "text": '{"error": {"message": "who are you"}}', "content_type": "application/json"},
        {"status": 302, "text": "", "headers": {"Location": "http://127.0.0.1:1/"}},
        {"status": 500, "text": "Traceback", "content_type": "text/plain"},
    ],
)
async def test_garbage_from_a_worker_reaches_no_client(client, start_worker, garbage):
    worker, good = await start_worker("w1", client), await start_worker("w2", client)

    async def answer(request):
        return web.Response(**garbage)

    worker.handler = answer
    for _ in range(2):
        assert (await client.chat("hi"))[0] == 200
    good.handler = answer
    status, body, _ = await client.chat("hi")
    assert status == 503
    assert body["error"]["type"] == "server_error"


async def test_usage_and_tokens_are_accounted(client, start_worker):
    await start_worker("w1", client)
    await client.chat("hi")
    whole = client.controller.stats.recent[-1]
    assert (whole.prompt_tokens, whole.completion_tokens, whole.ended) == (5, 2, "complete")
    await client.stream("hi")
    streamed = client.controller.stats.recent[-1]
    assert (streamed.completion_tokens, streamed.stream, streamed.ended) == (3, True, "complete")
    assert streamed.first_byte_seconds <= streamed.seconds
    assert await client.metric("generation_tokens_total") == 5
    assert await client.metric("requests_total", route="/v1/chat/completions", status="200") == 2


async def test_a_large_answer_streams_in_whole_events(client, start_worker, open_stream, chunk):
    worker = await start_worker("w1", client)
    words = [f"w{number}" * 200 for number in range(300)]

    async def much(request):
        response = await open_stream(request)
        data = b"".join(chunk(word) for word in words) + b"data: [DONE]\n\n"
        for start in range(0, len(data), 1777):  # cut anywhere but between events
            await response.write(data[start : start + 1777])
        return response

    worker.handler = much
    events = await client.stream("hi")
    assert [json.loads(event)["choices"][0]["delta"]["content"] for event in events[:300]] == words
