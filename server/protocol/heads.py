"""Bounds on a request's head, on what a connection may go on sending and on connections, which uvicorn does not have.

Shared by controller and worker. Just beyond the bounds of `check_head` a client gets OpenAI's error shape; far beyond
them, or when a head does not come to an end, the connection is cut.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Any, cast
from urllib.parse import unquote

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.protocol.connections import TOO_MANY, Connections
from server.protocol.cycle import HIGH_WATER, Cycle
from server.protocol.errors import ApiError, bad_request

MAX_HEADER_BYTES = 32 * 1024
MAX_HEADERS = 128
_MAX_HEAD_BYTES = 2 * MAX_HEADER_BYTES
KEEP_ALIVE = 75  # seconds an unused connection is kept: longer than clients keep theirs, or both may close at once
_HEAD_SECONDS = 20.0
_LINGER_SECONDS = 10.0  # for the rest of a body whose request was answered already
_HOST = re.compile(rb"[A-Za-z0-9._~-]{1,255}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")


def check_head(scope: Scope) -> None:
    """Raises ApiError 431 for too many or too large headers, 400 where it is not plain to whom the request goes."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    if len(headers) > MAX_HEADERS:
        raise ApiError(431, f"The request has {len(headers)} headers; at most {MAX_HEADERS} are accepted.")
    hosts: list[bytes] = []
    size = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    for name, value in headers:
        size += len(name) + len(value)
        if name == b"host":
            hosts.append(value)
    if size > MAX_HEADER_BYTES:
        raise ApiError(431, f"The headers are larger than the {MAX_HEADER_BYTES} bytes that are accepted.")
    if len(hosts) > 1 or (not hosts and scope["http_version"] != "1.0"):
        raise bad_request(f"A request needs one Host header, found {len(hosts)}.", code="invalid_host")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise bad_request("The Host header is not the name of a host.", code="invalid_host")


class BoundedProtocol(HttpToolsProtocol):
    """Ends connections whose request line and headers, or whose body after the answer, do not come to an end."""

    _head_bytes = 0  # received of a head that is not complete
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None
    _in_body = False
    _linger_timer: asyncio.TimerHandle | None = None

    def __init__(self, *, connections: Connections, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._open = connections
        self.address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        if self._open.open(self):
            self._expect_head()
        else:
            self.transport.write(TOO_MANY)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.close(self)
        self._head_done()
        self._body_done()
        super().connection_lost(exc)
        if self.cycle is not None and not self.cycle.response_complete:
            cast(Cycle, self.cycle).left()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._give_up)
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.send_400_response("The request's head is too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_done()
        self._in_head = True  # and timed, if its end does not come with its beginning

    def on_headers_complete(self) -> None:
        """As uvicorn's, without its WebSockets and its limit of connections, which are not used here."""
        self._head_done()
        self._in_body = True
        self._open.busy(self)
        version, scope = self.parser.get_http_version(), self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        before = self.cycle
        self.cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        cycle = cast(Cycle, self.cycle)
        if not cycle.response_complete:
            cycle.add_body(body)
            if cycle.received > HIGH_WATER:
                self.flow.pause_reading()

    def on_message_complete(self) -> None:
        self._body_done()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:
            self._open.idle(self)
        if self._in_body and self._linger_timer is None:
            # uvicorn drops what comes, and forgets its own timer with the first byte of it.
            self._linger_timer = self.loop.call_later(_LINGER_SECONDS, self._give_up)

    def give_way(self) -> None:
        self.transport.close()

    def _expect_head(self) -> None:
        self._head_done()
        self._in_head = True
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._give_up)

    def _head_done(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _body_done(self) -> None:
        self._in_body = False
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def bounded(connections: Connections) -> type[asyncio.Protocol]:
    """What uvicorn makes a protocol from, for every connection of a server."""
    return cast(type[asyncio.Protocol], partial(BoundedProtocol, connections=connections))
