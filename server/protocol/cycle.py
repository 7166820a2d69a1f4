"""One request and its answer on a connection of uvicorn's, with less work for each than uvicorn's own.

The head of an answer leaves together with the first part of its body, a body that comes in parts is put together once,
and who wants to know that the client left is called instead of having to wait for it in a task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    RequestResponseCycle,
)

LEAVING = "tephra.leaving"  # key of the ASGI scope: takes a function to be called if the client leaves, or None
HIGH_WATER = 256 * 1024  # bytes of a body that wait to be received before reading pauses
_JOINED = 64 * 1024  # bytes: a longer part of a body is not copied behind its head
_NO_BODY = (204, 304)


class Cycle(RequestResponseCycle):
    """ASGI's two ends. `add_body` and `left` are called by the connection."""

    def __init__(self, **about: Any) -> None:
        super().__init__(**about)
        cast(dict[str, Any], self.scope)[LEAVING] = self._watch
        self.received = 0  # bytes that wait
        self._pieces: list[bytes] = []
        self._head = b""  # of an answer, until its body begins
        self._on_leave: Callable[[], None] | None = None

    def add_body(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self.received += len(piece)
        self.message_event.set()

    def left(self) -> None:
        if self._on_leave is not None:
            self._on_leave()

    def _watch(self, called: Callable[[], None] | None) -> None:
        self._on_leave = called
        if self.disconnected:
            self.left()

    async def receive(self) -> Any:
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            self.flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces, self.received = [], 0
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        expected = "http.response.body" if self._head or self.response_started else "http.response.start"
        if message["type"] == "http.response.start" and not self.response_started:
            self._head = self._begin(message)
        elif message["type"] != expected or self.response_complete:
            raise RuntimeError(f"ASGI message {message['type']!r} sent where {expected!r} was to come.")
        else:
            self._write(message.get("body", b""), more=message.get("more_body", False))

    def _begin(self, message: Any) -> bytes:
        """The head of the answer; notes how its body is framed. Raises RuntimeError for headers that none may have."""
        self.waiting_for_100_continue = False
        self.chunked_encoding, self.expected_content_length = None, 0
        status, closes = message["status"], False
        lines = [STATUS_LINE[status]]
        for name, value in (*self.default_headers, *message.get("headers", ())):
            if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
                raise RuntimeError("A header of the answer holds what no header may.")
            name = name.lower()
            if name == b"content-length" and self.chunked_encoding is None:
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"transfer-encoding" and value.lower() == b"chunked":
                self.expected_content_length = 0
                self.chunked_encoding = True
            elif name == b"connection" and b"close" in (token.strip() for token in value.lower().split(b",")):
                self.keep_alive, closes = False, True
            lines += (name, b": ", value, b"\r\n")
        if not self.keep_alive and not closes:
            lines.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in _NO_BODY:
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def _write(self, body: bytes, *, more: bool) -> None:
        parts = [self._head] if self._head else []
        self._head, self.response_started = b"", True
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
        elif self.chunked_encoding:
            if body:
                parts += (b"%x\r\n" % len(body), body, b"\r\n")
            if not more:
                parts.append(b"0\r\n\r\n")
        else:
            if len(body) > self.expected_content_length:
                raise RuntimeError("The answer is longer than its Content-Length.")
            self.expected_content_length -= len(body)
            parts.append(body)
        if len(body) > _JOINED:
            self.transport.writelines(parts)
        else:
            self.transport.write(b"".join(parts))
        if more:
            return
        if self.expected_content_length:
            raise RuntimeError("The answer is shorter than its Content-Length.")
        self.response_complete = True
        cast(dict[str, Any], self.scope).pop(LEAVING)  # it leads back here: what refers to itself is freed late
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
