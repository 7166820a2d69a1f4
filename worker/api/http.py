"""uvicorn's httptools protocol with bounds on a request's head in bytes and seconds, which it does not have itself."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from worker.api.front import MAX_HEADER_BYTES

# Twice what the application accepts: within it the client gets OpenAI's error shape, beyond it the connection ends.
MAX_HEAD_BYTES = 2 * MAX_HEADER_BYTES
HEAD_SECONDS = 20.0


class BoundedHeadProtocol(HttpToolsProtocol):
    """Ends connections whose request line and headers do not come to an end."""

    _head_bytes = 0  # received of a head that is not complete
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The request's head is too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_done()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._head_done()
        self._in_head = True
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _head_done(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
