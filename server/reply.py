"""Writes answers to plain ASGI: JSON, errors in OpenAI's shape, event streams. Knows whether an answer has begun."""

from __future__ import annotations

import time

import orjson
from starlette.types import Message, Scope, Send

from server.protocol.errors import ApiError
from server.sse import error_frame

Headers = list[tuple[bytes, bytes]]

REQUEST_ID = "tephra.request_id"  # key of the ASGI scope


def error_headers(error: ApiError) -> Headers:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in error.headers.items()]


class Reply:
    """One request's answer."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        self._id = (b"x-request-id", scope[REQUEST_ID].encode())
        self.started = False
        self.streaming = False
        self._ended = False
        self.sending = False  # waiting for the client to take what it was sent
        self.send_seconds = 0.0  # of all waiting for it
        self.status = 0
        self.headers: Headers = []  # beside those of the answer itself, whatever it is

    async def json(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        """Sends a whole answer; `body` is JSON already."""
        own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), self._id, *self.headers]
        self.started, self.status = True, status
        await self._put({"type": "http.response.start", "status": status, "headers": own + (headers or [])})
        await self._put({"type": "http.response.body", "body": body})

    async def frames(self, data: bytes, *, last: bool = False) -> None:
        """Sends whole event-stream frames, beginning the answer with the first; `last` ends it."""
        if not self.started:
            self.started = self.streaming = True
            self.status = 200
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),  # proxies in front shall not hold tokens back
                self._id,
                *self.headers,
            ]
            await self._put({"type": "http.response.start", "status": 200, "headers": headers})
        self._ended = last
        await self._put({"type": "http.response.body", "body": data, "more_body": not last})

    async def end(self) -> None:
        """Ends an event stream."""
        if not self._ended:
            await self._put({"type": "http.response.body", "body": b""})

    async def error(self, error: ApiError) -> None:
        """The error as an answer of its own, or as the last event of a stream that has begun."""
        body = orjson.dumps(error.body())
        if not self.started:
            await self.json(error.status, body, error_headers(error))
        elif self.streaming:
            await self._put({"type": "http.response.body", "body": error_frame(body)})

    async def _put(self, message: Message) -> None:
        self.sending = True
        began = time.perf_counter()
        try:
            await self._send(message)
        finally:
            self.send_seconds += time.perf_counter() - began
        self.sending = False
