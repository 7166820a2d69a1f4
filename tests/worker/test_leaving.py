"""Clients that leave: their answers are cancelled, streamed or not, and nothing of them stays behind."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def request_bytes(**fields: Any) -> bytes:
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_leaves_before_the_first_token_cancels_its_answers(
    stage: Any, props: Any, stream: bool, n: int
) -> None:
    engine = props.engine(props.say("never"), hold=asyncio.Event())
    worker = await stage(engine=engine)
    _, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    writer.write(request_bytes(stream=stream, n=n))
    await until(lambda: len(engine.requests) == n)
    writer.close()
    await until(lambda: len(engine.cancelled) == n)
    await until(lambda: worker.service.gate.requests == 0)


async def test_a_client_that_leaves_within_a_stream_cancels_it(stage: Any, props: Any) -> None:
    worker = await stage(props.play(*[70] * 2000, ended=False))
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    writer.write(request_bytes(stream=True, n=2, max_tokens=1500))
    assert b"200 OK" in await reader.readline()
    await reader.readuntil(b'"content":"')
    writer.transport.abort()
    await until(lambda: len(worker.engine.cancelled) == 2)
    await until(lambda: worker.service.gate.requests == 0)


async def test_a_client_that_stops_reading_counts_as_gone(stage: Any, props: Any) -> None:
    worker = await stage(props.play(*[70] * 2000, ended=False), send_seconds=0.1)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", worker.port))
        fields = {"stream": True, "n": 4, "max_tokens": 1500, "logprobs": True, "top_logprobs": 20}
        await asyncio.get_running_loop().sock_sendall(client, request_bytes(**fields))
        await until(lambda: len(worker.engine.requests) == 4)
        await until(lambda: worker.service.gate.requests == 0)
    assert len(worker.engine.cancelled) == 4


async def test_a_client_that_leaves_within_its_body_leaves_nothing(stage: Any) -> None:
    worker = await stage()
    _, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    writer.write(request_bytes()[:-5])
    await until(lambda: worker.service.gate.requests == 1)
    writer.transport.abort()
    await until(lambda: worker.service.gate.requests == 0)
    assert worker.engine.requests == []


async def test_a_client_that_leaves_while_its_picture_is_fetched_ends_the_fetch(stage: Any, props: Any) -> None:
    class Slow:
        fetching = asyncio.Event()
        ended = asyncio.Event()

        async def fetch(self, url: str) -> bytes:
            self.fetching.set()
            try:
                await asyncio.sleep(60)
            finally:
                self.ended.set()
            return b""

    source = Slow()
    worker = await stage(source=source)
    content = [{"type": "image_url", "image_url": {"url": "http://pictures.test/slow.png"}}]
    _, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    writer.write(request_bytes(messages=[{"role": "user", "content": content}]))
    async with asyncio.timeout(10):
        await source.fetching.wait()
        assert worker.service.gate.images == 1
        writer.close()
        await source.ended.wait()
    await until(lambda: worker.service.gate.images == 0)


async def test_a_failure_in_one_answer_cancels_its_siblings(stage: Any, props: Any) -> None:
    from worker.engine.protocol import EngineError

    def script(request: Any) -> Any:
        return [EngineError("no room")] if request.id.endswith("-1") else props.play(*[70] * 500)(request)

    worker = await stage(script)
    assert (await worker.chat(n=3, max_tokens=400)).status_code == 400
    assert len(worker.engine.cancelled) == 2
    assert worker.service.gate.requests == 0


async def test_while_draining_new_requests_are_503_and_running_ones_finish(stage: Any, props: Any) -> None:
    engine = props.engine(props.say("to the end"), hold=asyncio.Event())
    worker = await stage(engine=engine)
    running = asyncio.create_task(worker.chat(stream=True))
    await engine.started.wait()
    worker.service.gate.drain()
    refused = await worker.chat()
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "unavailable"
    ready = await worker.client.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert (await worker.client.get("/health/live")).status_code == 200
    empty = asyncio.create_task(worker.service.gate.wait_empty())
    await asyncio.sleep(0)
    assert not empty.done()
    engine.hold.set()
    assert (await running).text.endswith("data: [DONE]\n\n")
    async with asyncio.timeout(10):
        await empty
