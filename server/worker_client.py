"""The HTTP/1.1 client for the way to a worker: kept connections, one request at a time on each, and nothing that this
way does not need (no redirects, no cookies, no compression, no proxies).

It believes nothing of what comes back: heads are bounded, reading pauses while nobody takes what came, and a connection
on which anything went other than planned is closed. What an answer means is the relay's to say.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

_MAX_HEAD = 64 * 1024  # bytes of an answer's head
_MAX_HEADERS = 256
_MOST_WAITING = 256 * 1024  # bytes of an answer that wait to be taken before reading pauses
_JOINED = 16 * 1024  # bytes: a shorter body goes out with its head in one piece
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Unreachable(ConnectionError):
    """No connection could be made."""


class Lost(ConnectionError):
    """The connection ended before the answer did. `begun`: its head had come."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__("the connection to the worker was lost")
        self.begun = begun


class Garbled(ValueError):
    """What came is no answer in HTTP."""


@dataclass
class _Place:
    """Where a worker listens."""

    url: str
    host: str
    port: int
    tls: ssl.SSLContext | None
    prefix: str
    authority: str
    idle: deque[tuple[_Connection, float]] = field(default_factory=deque)  # with since when; the last used at the right


class WorkerClient:
    """post() ... close(); event loop only."""

    def __init__(self, connect_seconds: float, keep_alive: float) -> None:
        """`keep_alive`: seconds that an unused connection is kept."""
        self._connect_seconds = connect_seconds
        self._keep_alive = keep_alive
        self._places: dict[str, _Place] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._open: set[_Connection] = set()

    async def post(self, url: str, path: str, headers: Mapping[str, str], body: Sequence[bytes]) -> Answer:
        """The head of the answer. `body` goes out as it is, without a copy where it is long; Content-Length is its own.

        Raises Unreachable, Lost, Garbled, and ValueError for headers that no request may have.
        """
        place = self._places.get(url) or self._add_place(url)
        lines = [f"POST {place.prefix}{path} HTTP/1.1\r\nHost: {place.authority}\r\n"]
        for name, value in headers.items():
            if _CONTROL.search(value):
                raise ValueError(f"the header {name} holds control characters")
            lines.append(f"{name}: {value}\r\n")
        size = sum(map(len, body))
        lines.append(f"Content-Length: {size}\r\n\r\n")
        head = "".join(lines).encode()
        connection = self._idle_at(place)
        if connection is None:
            connection = await self._connect(place)
        return await connection.exchange([b"".join((head, *body))] if size <= _JOINED else [head, *body])

    async def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in tuple(self._open):
            connection.abort()
        await asyncio.sleep(0)

    def keep(self, connection: _Connection, place: _Place) -> None:
        """It has nothing under way."""
        loop = asyncio.get_running_loop()
        place = self._places.setdefault(place.url, place)
        place.idle.append((connection, loop.time()))
        if self._sweep is None:
            self._sweep = loop.call_later(self._keep_alive, self._close_unused)

    def opened(self, connection: _Connection) -> None:
        self._open.add(connection)

    def closed(self, connection: _Connection) -> None:
        self._open.discard(connection)

    def _add_place(self, url: str) -> _Place:
        parts = urlsplit(url)
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if tls else 80)
        place = _Place(url, parts.hostname or "", port, tls, parts.path.rstrip("/"), parts.netloc)
        self._places[url] = place
        return place

    def _idle_at(self, place: _Place) -> _Connection | None:
        oldest = asyncio.get_running_loop().time() - self._keep_alive
        while place.idle:
            connection, since = place.idle.pop()
            if since > oldest and connection.usable:
                return connection
            connection.abort()
        return None

    async def _connect(self, place: _Place) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, place), place.host, place.port, ssl=place.tls
                )
        except OSError as error:  # TimeoutError among them
            raise Unreachable(str(error)) from error
        return connection

    def _close_unused(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._keep_alive
        for place in self._places.values():
            while place.idle and (place.idle[0][1] <= oldest or not place.idle[0][0].usable):
                place.idle.popleft()[0].abort()
        self._places = {url: place for url, place in self._places.items() if place.idle}
        self._sweep = loop.call_later(self._keep_alive, self._close_unused) if self._places else None


class Answer:
    """What comes back for one request."""

    def __init__(self, connection: _Connection) -> None:
        self._connection: _Connection | None = connection
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: list[bytes] = []
        self._waiting = 0  # bytes in them
        self._error: Exception | None = None
        self.headers: dict[bytes, bytes] = {}  # names in lower case; of several of a name the last
        self.status = 0  # 0: the head has not come yet
        self.complete = False

    def header(self, name: str) -> str:
        """Empty where there is none."""
        return self.headers.get(name.lower().encode("latin-1"), b"").decode("latin-1")

    @property
    def content_type(self) -> str:
        """Without its parameters."""
        return self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")

    @property
    def exhausted(self) -> bool:
        """Whether all of it was taken."""
        return self.complete and not self._pieces

    async def begun(self) -> None:
        """Until its head is here."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._news()

    async def read(self) -> bytes:
        """What has come since; empty at the end. Raises Lost and Garbled."""
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self.complete:
                return b""
            await self._news()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._waiting = 0
        if self._connection is not None:
            self._connection.resume()
        return data

    def close(self) -> None:
        """Ends the request at the worker, unless the answer is complete."""
        if self._connection is not None:
            self._connection.abort()

    def add(self, piece: bytes) -> bool:
        """Whether more may come at once."""
        self._pieces.append(piece)
        self._waiting += len(piece)
        self.wake()
        return self._waiting < _MOST_WAITING

    def end(self, error: Exception | None = None) -> None:
        """The connection is no longer concerned with it."""
        self._connection = None
        if error is None:
            self.complete = True
        else:
            self._error = error
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _news(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class _Connection(asyncio.Protocol):
    """One request after the other; everything but `exchange` and `abort` is called by the transport or the parser."""

    def __init__(self, client: WorkerClient, place: _Place) -> None:
        self._client = client
        self._place = place
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._headers: dict[bytes, bytes] = {}
        self._head_lines = 0  # headers of an answer so far, interim ones and trailers included
        self._head_bytes = 0  # received of a head that is not complete
        self._until_closed = False  # the answer ends where the connection does
        self._keep = False
        self._paused = False
        self._broken = False

    @property
    def usable(self) -> bool:
        return not self._broken and not self._transport.is_closing()

    async def exchange(self, request: Sequence[bytes]) -> Answer:
        """Returns once the answer's head is here. Raises Lost and Garbled."""
        if not self.usable:
            raise Lost(begun=False)
        self._answer = answer = Answer(self)
        self._headers, self._head_lines, self._head_bytes = answer.headers, 0, 0
        if len(request) == 1:
            self._transport.write(request[0])
        else:
            self._transport.writelines(request)
        try:
            await answer.begun()
        except BaseException:
            answer.close()
            raise
        return answer

    def abort(self) -> None:
        self._broken = True
        self._transport.abort()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._client.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._broken = True
        self._client.closed(self)
        answer, self._answer = self._answer, None
        if answer is not None:
            whole = self._until_closed and answer.status and exc is None
            answer.end(None if whole else Lost(begun=bool(answer.status)))

    def data_received(self, data: bytes) -> None:
        if self._broken:
            return
        answer = self._answer
        if answer is not None and not answer.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail()
            return
        if answer is not None and not answer.status and self._head_bytes > _MAX_HEAD:
            self._fail()

    def on_message_begin(self) -> None:
        if self._answer is None:
            self.abort()  # nobody asked

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_lines += 1
        if self._head_lines > _MAX_HEADERS:
            raise Garbled("too many headers")
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        answer = self._answer
        if answer is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._headers.clear()  # an interim answer: the real one follows
            return
        answer.status = status
        self._keep = self._parser.should_keep_alive()
        self._until_closed = b"content-length" not in self._headers and b"transfer-encoding" not in self._headers
        answer.wake()

    def on_body(self, data: bytes) -> None:
        if self._answer is not None and not self._answer.add(data) and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        answer = self._answer
        if answer is None or not answer.status:
            return
        self._answer = None
        answer.end()
        # A worker that answers before it has read the request may take the rest of it for another one.
        if self._keep and not self._broken and not self._transport.get_write_buffer_size():
            self.resume()
            self._client.keep(self, self._place)
        else:
            self.abort()

    def _fail(self) -> None:
        answer, self._answer = self._answer, None
        self.abort()
        if answer is not None:
            answer.end(Garbled("the worker's answer is not HTTP"))
