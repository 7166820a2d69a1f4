"""The client for the way to a worker: what it makes of answers that are in order, and of those that are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from server.worker_client import Garbled, Lost, Unreachable, WorkerClient

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """A server that says what it is told to, whatever it is asked."""

    def __init__(self, *answers: bytes, closes: bool = False) -> None:
        self._answers = list(answers)
        self._closes = closes
        self.requests: list[bytes] = []
        self.connections = 0
        self.ended = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                writer.write(self._answers.pop(0) if self._answers else WHOLE)
                if self._closes:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended.set()
        finally:
            writer.close()


@asynccontextmanager
async def asking(serve: Serve, keep_alive: float = 4.0) -> AsyncIterator[tuple[WorkerClient, str]]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = WorkerClient(1.0, keep_alive)
    try:
        yield client, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        await client.close()
        server.close()


async def everything(client: WorkerClient, url: str, *body: bytes) -> tuple[int, bytes]:
    answer = await client.post(url, "/v1/x", {"X-One": "1"}, body or (b"{}",))
    data = b""
    while piece := await answer.read():
        data += piece
    return answer.status, data


async def test_a_request_goes_out_whole_and_its_connection_is_used_again():
    peer = Peer()
    async with asking(peer) as (client, url):
        assert await everything(client, url, b"state", b"x" * 100_000) == (200, b"{}")
        assert await everything(client, url) == (200, b"{}")
    host = url.removeprefix("http://")
    assert peer.requests[0].startswith(f"POST /v1/x HTTP/1.1\r\nHost: {host}\r\nX-One: 1\r\n".encode())
    assert peer.requests[0].endswith(b"\r\n\r\nstate" + b"x" * 100_000)
    assert peer.connections == 1


async def test_headers_are_found_whatever_their_case():
    async with asking(Peer()) as (client, url):
        answer = await client.post(url, "/", {}, (b"",))
        assert answer.content_type == "application/json"
        assert answer.header("CONTENT-type") == "application/json; charset=utf-8"
        assert answer.header("Retry-After") == ""


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX-A: b\r\n\r\n" + WHOLE,
    ],
    ids=["chunked", "after interim answers"],
)
async def test_what_http_allows_is_understood(answer):
    peer = Peer(answer)
    async with asking(peer) as (client, url):
        assert await everything(client, url) == (200, b"{}")
        assert await everything(client, url) == (200, b"{}")
    assert peer.connections == 1


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"])
async def test_an_answer_may_end_with_its_connection(head):
    async with asking(Peer(head + b"{}", closes=True)) as (client, url):
        assert await everything(client, url) == (200, b"{}")


@pytest.mark.parametrize(
    "garbage",
    [
        b"no HTTP at all\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxxxx",
    ],
)
async def test_what_is_no_answer_is_refused_and_its_connection_ended(garbage):
    peer = Peer(garbage)
    async with asking(peer) as (client, url), asyncio.timeout(5):
        with pytest.raises(Garbled):
            await everything(client, url)
        assert await everything(client, url) == (200, b"{}")
    assert peer.connections == 2


async def test_a_broken_chunk_ends_an_answer_that_had_begun():
    async with asking(Peer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n")) as (client, url):
        answer = await client.post(url, "/", {}, (b"",))
        with pytest.raises(Garbled):
            while await answer.read():
                pass


@pytest.mark.parametrize(
    ("said", "begun"),
    [(b"", False), (b"HTTP/1.1 200", False), (WHOLE[:-1], True)],
)
async def test_a_connection_that_ends_early_says_whether_an_answer_had_begun(said, begun):
    async with asking(Peer(said, closes=True)) as (client, url):
        with pytest.raises(Lost) as lost:
            await everything(client, url)
        assert lost.value.begun is begun


async def test_what_comes_unasked_spoils_the_connection():
    peer = Peer(WHOLE + WHOLE)
    async with asking(peer) as (client, url):
        assert await everything(client, url) == (200, b"{}")
        assert await everything(client, url) == (200, b"{}")
    assert peer.connections == 2


async def test_a_connection_whose_server_wants_it_closed_is_not_used_again():
    peer = Peer(WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    async with asking(peer) as (client, url):
        assert await everything(client, url) == (200, b"{}")
        assert await everything(client, url) == (200, b"{}")
    assert peer.connections == 2


async def test_unused_connections_are_closed_after_their_time():
    peer = Peer()
    async with asking(peer, keep_alive=0.05) as (client, url), asyncio.timeout(5):
        await everything(client, url)
        await peer.ended.wait()
        await everything(client, url)
    assert peer.connections == 2


async def test_closing_an_answer_under_way_ends_its_connection():
    peer = Peer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
    async with asking(peer) as (client, url), asyncio.timeout(5):
        answer = await client.post(url, "/", {}, (b"",))
        answer.close()
        await peer.ended.wait()


async def test_giving_up_on_an_answer_that_does_not_come_ends_its_connection():
    peer = Peer(b"HTTP/1.1 ")
    async with asking(peer) as (client, url), asyncio.timeout(5):
        asked = asyncio.create_task(everything(client, url))
        while not peer.requests:
            await asyncio.sleep(0.01)
        asked.cancel()
        await peer.ended.wait()
        assert asked.cancelled()


async def test_no_more_of_an_answer_is_held_than_is_taken():
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536
        except ConnectionError:
            writer.close()

    async with asking(flood) as (client, url), asyncio.timeout(5):
        answer = await client.post(url, "/", {}, (b"",))
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 50_000_000
        assert len(await answer.read()) < 1_000_000
        assert await answer.read()
        answer.close()


async def test_a_worker_that_answers_before_it_read_the_request_is_believed_once():
    connections = 0

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    async with asking(hasty) as (client, url), asyncio.timeout(5):
        assert await everything(client, url, b"x" * 50_000_000) == (413, b"")
        assert await everything(client, url) == (413, b"")
    assert connections == 2


async def test_where_nobody_listens_is_told_apart():
    async with asking(Peer()) as (_, url):
        pass
    client = WorkerClient(1.0, 4.0)
    with pytest.raises(Unreachable):
        await everything(client, url)
    await client.close()


async def test_no_header_smuggles_another():
    peer = Peer()
    async with asking(peer) as (client, url):
        with pytest.raises(ValueError, match="X-Id"):
            await client.post(url, "/", {"X-Id": "a\r\nX-Evil: b"}, (b"",))
    assert peer.requests == []
