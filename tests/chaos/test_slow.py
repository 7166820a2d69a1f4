"""Slow loris from all sides: clients and workers that send or take a byte at a time, and others that notice nothing."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(600)

MOST = 40  # connections
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nAuthorization: Bearer "


@pytest.fixture(scope="module")
def shared_system(running_system: Any) -> Iterator[Any]:
    controller = {"max_connections": MOST, "body_seconds": 2, "send_seconds": 2, "answer_seconds": 4}
    with running_system(controller, {"max_running": 4}) as system:
        yield system


class Slow:
    """Clients that take their time."""

    def __init__(self, system: Any) -> None:
        self._system = system
        self._tasks: list[asyncio.Task[bytes]] = []

    def dribble(self, data: bytes) -> asyncio.Task[bytes]:
        """Sends it a byte at a time, and returns what it was answered before the connection was closed."""
        return self._start(self._dribble(data))

    def sip(self, request_id: str, body: dict[str, Any]) -> None:
        """Asks at once and takes the answer a byte at a time."""
        self._start(self._sip(request_id, json.dumps(body).encode()))

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Any) -> asyncio.Task[bytes]:
        self._tasks.append(asyncio.create_task(work))
        return self._tasks[-1]

    async def _dribble(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._system.controller.port)
        answer = asyncio.create_task(reader.read())
        try:
            for byte in data:
                if answer.done():
                    break
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
            return await answer
        except ConnectionError:
            return b""
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
            writer.close()

    async def _sip(self, request_id: str, body: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        taken = bytearray()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", self._system.controller.port))
            head = CHAT + f"{self._system.key}\r\nX-Request-Id: {request_id}\r\n".encode()
            head += b"Content-Length: %d\r\n\r\n" % len(body)
            await loop.sock_sendall(client, head + body)
            try:
                while byte := await loop.sock_recv(client, 1):
                    taken += byte
                    await asyncio.sleep(0.05)
            except ConnectionError:
                pass  # the controller has had enough of it
        return bytes(taken)


@pytest.fixture
async def slow(system: Any) -> AsyncIterator[Slow]:
    slow = Slow(system)
    yield slow
    await slow.end()


async def test_heads_that_dribble_in_hold_no_more_connections_than_there_are_and_keep_nobody_out(
    system: Any, traffic: Any, slow: Slow
) -> None:
    async with traffic:
        for _ in range(3 * MOST):
            slow.dribble(b"GET /health/live HTTP/1.1\r\nHost: a\r\nX-Slow: " + b"x" * 10_000)
            await asyncio.sleep(0.01)
            assert system.metric("connections") <= MOST
        before = traffic.asked
        while traffic.asked < before + 10:
            await asyncio.sleep(0.1)
    assert not traffic.faults
    assert system.metric("connections_dropped_total") >= MOST


async def test_a_body_that_dribbles_in_is_given_up(system: Any, traffic: Any, slow: Slow) -> None:
    async with traffic:
        head = CHAT + system.key.encode() + b"\r\nContent-Length: 10000\r\n\r\n"
        answers = await asyncio.gather(*(slow.dribble(head + b" " * 10_000) for _ in range(8)))
    assert not traffic.faults
    assert {answer.split(b" ")[1] for answer in answers} == {b"408"}


async def test_a_client_that_hardly_reads_is_given_up_and_its_work_with_it(
    system: Any, traffic: Any, slow: Slow, eventually: Callable[..., Any]
) -> None:
    # Enough to fill every buffer on the way: 20 alternatives with each token.
    body = {"model": system.model, "messages": [{"role": "user", "content": "go on"}], "max_tokens": 1800}
    body |= {"stream": True, "ignore_eos": True, "logprobs": True, "top_logprobs": 20, "n": 2}
    names = {f"slow-{number}" for number in range(2)}

    def given_up() -> bool:
        return {name for name, record in system.recent().items() if record["ended"] == "client_left"} >= names

    async with traffic:
        for name in names:
            slow.sip(name, body)
        await asyncio.to_thread(eventually, given_up, "they are given up")
    assert not traffic.faults
    await asyncio.to_thread(eventually, system.idle, "the workers drop what nobody takes")
    assert system.metric("num_requests_running") == 0


async def test_a_worker_that_sends_a_byte_at_a_time_costs_time_and_no_answers(
    system: Any, traffic: Any, liar: Any, eventually: Callable[..., Any]
) -> None:
    liar.only_drips()
    async with traffic:
        await liar.join(system)
        await asyncio.to_thread(eventually, lambda: liar.dripping > 0, "requests come to the slow worker")
        await asyncio.to_thread(eventually, lambda: liar.dripping == 0, "they are taken elsewhere")
        await liar.leave()
    assert not traffic.faults
    assert system.metric("retries_total") >= 1
