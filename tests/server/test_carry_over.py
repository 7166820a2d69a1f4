"""Streams whose worker is lost: another carries them on, and the client sees one answer."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from aiohttp import web

from server.protocol.continuing import CONTINUE, MARK, RESUMABLE

WORDS = [f"w{number} " for number in range(12)]


class Storyteller:
    """Tells WORDS, a token each, from where the request says, and does what it is told to behind one of them."""

    def __init__(self, worker, fail_at, *, version, usage):
        self.worker = worker
        self.version = version
        self.usage = usage
        self.fail_at = fail_at  # words told -> what then happens, once for all who tell
        worker.handler = self.tell

    async def tell(self, request):
        state = self.worker.states[-1]
        at = len(state["choices"][0][1]) if state else 0
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", RESUMABLE: "1"})
        await response.prepare(request)
        if not state:
            begun = {"id": "chatcmpl-7", "created": 5, "version": self.version, "seed": 1}
            await response.write(MARK + json.dumps(begun).encode() + b"\n" + self.frame({"role": "assistant"}, []))
        for place in range(at, len(WORDS) + 1):
            if (failure := self.fail_at.pop(place, None)) is not None:
                await failure(request, response)
                return response
            last = place == len(WORDS)
            delta = {} if last else {"content": WORDS[place]}
            await response.write(self.frame(delta, [100 + place], "stop" if last else None))
        if self.usage:
            await response.write(chunk([], {"prompt_tokens": 3, "completion_tokens": len(WORDS) + 1}))
            if (failure := self.fail_at.pop("usage", None)) is not None:
                await failure(request, response)
                return response
        await response.write(b"data: [DONE]\n\n")
        return response

    def frame(self, delta, tokens, reason=None):
        trail = MARK + json.dumps([0, tokens, [], reason is not None]).encode() + b"\n"
        return trail + chunk([{"index": 0, "delta": delta, "finish_reason": reason}])


def chunk(choices, usage=None):
    body = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 5, "model": "demo", "choices": choices}
    return b"data: " + json.dumps(body | ({"usage": usage} if usage else {})).encode() + b"\n\n"


async def reset(request, response):
    await asyncio.sleep(0.05)  # what was written before goes out
    request.transport.abort()


async def end(request, response):
    await response.write_eof()


async def go_silent(request, response):
    await asyncio.sleep(60)


async def cut_in_two(request, response):
    await response.write(b':tephra [0, [199], [], false]\ndata: {"choices": [{"ind')
    await reset(request, response)


async def garble(request, response):
    await asyncio.sleep(0.05)
    await response.write(b"data: <html>\n\n")


async def grow_without_end(request, response):
    try:
        while True:
            await response.write(b"x" * 65536)
    except ConnectionError:
        pass  # the controller has had enough


async def say_that_it_stops(request, response):
    error = {"error": {"message": "stopping", "type": "server_error", "param": None, "code": "unavailable"}}
    await response.write(b"data: " + json.dumps(error).encode() + b"\n\n")


def text_of(events):
    return "".join(
        choice["delta"].get("content") or ""
        for event in events
        if event != "[DONE]"
        for choice in json.loads(event)["choices"]
    )


def is_one_whole_answer(events):
    chunks = [json.loads(event) for event in events[:-1]]
    choices = [choice for one in chunks for choice in one["choices"]]
    assert text_of(events) == "".join(WORDS)
    assert events.count("[DONE]") == 1 and events[-1] == "[DONE]"
    assert sum("role" in choice["delta"] for choice in choices) == 1
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert not any("tephra" in event for event in events)
    return True


@pytest.fixture
async def tellers(start_controller, start_worker):
    """`await tellers(2, {7: reset})`: a controller, and workers of which the first to get there fails in that place."""

    before = []

    async def start(count, fail_at, *, versions=("v1",), usage=False, **settings):
        while before:  # controllers of one test share a Redis
            await before.pop().leave()
        client = await start_controller(**{"lease_seconds": 3.0} | settings)
        workers = []
        for number in range(count):
            version = versions[number % len(versions)]
            worker = await start_worker(f"w{number}", client, version=version)
            workers.append(Storyteller(worker, fail_at, version=version, usage=usage).worker)
        before.extend(workers)
        return client, workers

    return start


def carried(client, reason):
    name = "tephra:streams_carried_over_total"
    return client.controller.metrics.registry.get_sample_value(name, {"reason": reason}) or 0


def asked(workers):
    return sum(len(worker.bodies) for worker in workers)


@pytest.mark.parametrize("place", [0, 1, 7, 12])
@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (reset, "worker_lost"),
        (end, "worker_lost"),
        (cut_in_two, "worker_lost"),
        (garble, "bad_answer"),
        (grow_without_end, "bad_answer"),
        (say_that_it_stops, "worker_error"),
    ],
)
async def test_the_client_sees_one_answer_whatever_becomes_of_its_worker(tellers, failure, reason, place):
    client, workers = await tellers(2, {place: failure})
    assert is_one_whole_answer(await client.stream("tell me"))
    assert carried(client, reason) == 1
    record = client.controller.stats.recent[-1]
    assert (record.ended, record.carried_over, record.retries) == ("complete", 1, 0)
    first, second = sorted(workers, key=lambda worker: worker.states != [None])
    told = [100 + number for number in range(place)]
    assert second.states == [
        {
            "beginning": {"id": "chatcmpl-7", "created": 5, "version": "v1", "seed": 1},
            "choices": [[0, told, [], False]],
        }
    ]
    assert second.bodies == first.bodies
    assert all(worker.in_flight == 0 for worker in client.controller.table)


async def test_a_stream_that_falls_silent_is_carried_on_within_a_lease(tellers):
    client, _ = await tellers(2, {7: go_silent})
    began = time.monotonic()
    assert is_one_whole_answer(await client.stream("tell me"))
    assert carried(client, "stalled") == 1
    assert time.monotonic() - began >= 3.0


async def test_a_stream_that_only_says_that_it_lives_is_left_in_peace(tellers):
    async def think(request, response):
        for _ in range(8):
            await response.write(b":\n\n")
            await asyncio.sleep(0.5)
        await response.write(b"data: [DONE]\n\n")

    client, workers = await tellers(2, {7: think})
    events = await client.stream("tell me")
    assert text_of(events) == "".join(WORDS[:7]) and events[-1] == "[DONE]"
    assert all(events)  # nothing of the signs of life reached the client
    assert asked(workers) == 1


async def test_only_the_end_mark_missing_is_put_there(tellers):
    client, workers = await tellers(2, {"usage": reset}, usage=True)
    events = await client.stream("tell me")
    assert is_one_whole_answer(events)
    assert sum("completion_tokens" in event for event in events) == 1
    assert asked(workers) == 1
    assert client.controller.stats.recent[-1].completion_tokens == len(WORDS) + 1


async def test_a_worker_whose_connection_broke_may_carry_on_its_own_stream(tellers):
    client, workers = await tellers(1, {7: reset})
    assert is_one_whole_answer(await client.stream("tell me"))
    assert [state is None for state in workers[0].states] == [True, False]


async def test_a_stream_is_carried_on_so_many_times_and_no_more(tellers):
    client, workers = await tellers(2, {2: reset, 4: reset, 6: reset})
    assert is_one_whole_answer(await client.stream("tell me"))
    client, workers = await tellers(2, {2: reset, 4: reset, 6: reset, 8: reset})
    events = await client.stream("tell me")
    assert text_of(events[:-1]) == "".join(WORDS[:8])
    assert json.loads(events[-1])["error"]["code"] == "stream_broken"
    assert asked(workers) == 4
    assert client.controller.stats.recent[-1].ended == "broken"
    client, workers = await tellers(2, {2: reset}, carry_overs=0)
    assert json.loads((await client.stream("tell me"))[-1])["error"]["code"] == "stream_broken"
    assert asked(workers) == 1


async def test_only_a_worker_of_the_same_version_carries_on(tellers):
    async def die(request, response):
        await asyncio.sleep(0.05)
        doomed = next(worker for worker in workers if worker.bodies)
        asyncio.get_running_loop().create_task(doomed.die())
        await asyncio.sleep(10)

    client, workers = await tellers(2, {7: die}, versions=("v1", "v2"), lease_seconds=1.0)
    events = await client.stream("tell me")
    assert json.loads(events[-1])["error"]["code"] == "stream_broken"
    assert asked(workers) == 1


async def test_what_a_worker_says_wrongly_of_its_stream_only_costs_the_carrying_on(tellers):
    async def lie(request, response):
        await response.write(b':tephra [0, ["x"], [], false]\n' + chunk([{"index": 0, "delta": {"content": "w7 "}}]))
        await reset(request, response)

    client, _ = await tellers(2, {7: lie})
    events = await client.stream("tell me")
    assert text_of(events[:-1]) == "".join(WORDS[:8])
    assert json.loads(events[-1])["error"]["code"] == "stream_broken"
    assert not any("tephra" in event for event in events)


async def test_a_client_cannot_begin_in_the_middle_itself(tellers):
    client, (worker,) = await tellers(1, {})
    state = {"beginning": {"id": "chatcmpl-1", "created": 1, "version": "v1", "seed": 1}, "choices": [[0, [1, 2]]]}
    headers = {CONTINUE: str(len(json.dumps(state))), RESUMABLE: "1"}
    body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    async with client.session.post(client.url + "/v1/chat/completions", json=body, headers=headers) as response:
        text = await response.text()
        assert RESUMABLE not in response.headers
    assert CONTINUE not in worker.headers[-1]
    assert MARK.decode() not in text and worker.states == [None]


async def test_a_worker_that_cannot_be_reached_any_more_keeps_no_request_waiting(start_controller, start_worker, stack):
    client = await start_controller(lease_seconds=1.0)
    behind = await start_worker("w1")
    wall = Wall(behind.url)
    await stack.enter_async_context(wall)
    behind.url = wall.url  # heartbeats go another way
    await behind.join(client.url)

    async def think(request):
        await asyncio.sleep(3.0)
        return web.json_response({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    behind.handler = think
    assert (await client.chat("hi"))[0] == 200  # slow, but there
    asking = asyncio.create_task(client.chat("hi"))
    while len(behind.bodies) < 2:
        await asyncio.sleep(0.01)
    wall.up = True
    rescue = await start_worker("w2", client)
    status, _, _ = await asking
    assert status == 200 and len(rescue.bodies) == 1
    assert await client.metric("retries_total", reason="unreachable") == 1


class Wall:
    """A TCP proxy that from some moment on takes everything and passes on nothing."""

    def __init__(self, url):
        host, _, port = url.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._tasks = set()
        self.up = False

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader, writer):
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        for ends in ((reader, there_writer), (there_reader, writer)):
            self._tasks.add(asyncio.create_task(self._pump(*ends)))

    async def _pump(self, reader, writer):
        try:
            while data := await reader.read(65536):
                if not self.up:
                    writer.write(data)
        finally:
            if not self.up:
                writer.close()
