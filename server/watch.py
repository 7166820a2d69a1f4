"""Ends a request's work the moment nobody wants it: its client left, or the controller stops.

Works as `asyncio.timeout` does: the task is cancelled wherever it waits, and the cancellation becomes ClientLeft or
ControllerStopping where the block ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from starlette.types import Receive, Scope

from server.protocol.cycle import LEAVING


class ClientLeft(Exception):
    """The client closed its connection before the answer's end."""


class ControllerStopping(Exception):
    """The time to finish answers is over."""


class Watches:
    """Every watch of the process, so that all can be ended at once."""

    def __init__(self) -> None:
        self._open: set[RequestWatch] = set()

    def watch(self, scope: Scope, receive: Receive) -> RequestWatch:
        return RequestWatch(scope.get(LEAVING), receive, self._open)

    def __len__(self) -> int:
        return len(self._open)

    def stop_all(self) -> None:
        for watch in tuple(self._open):
            watch.end("stopping")


class RequestWatch:
    """Entered once the request's body was read: from then on `receive` tells of nothing but the client's leaving.
    A server that calls when the client leaves spares the task that waits for it."""

    def __init__(
        self,
        leaving: Callable[[Callable[[], None] | None], None] | None,
        receive: Receive,
        siblings: set[RequestWatch],
    ) -> None:
        self._leaving = leaving
        self._receive = receive
        self._siblings = siblings
        self._reason: Literal["left", "stopping"] | None = None

    async def __aenter__(self) -> RequestWatch:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._watcher: asyncio.Task[None] | None = None
        self._siblings.add(self)
        if self._leaving is None:
            self._watcher = asyncio.create_task(self._listen())
        else:
            self._leaving(self._left)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._siblings.discard(self)
        if self._leaving is not None:
            self._leaving(None)
        elif self._watcher is not None:
            self._watcher.cancel()
        if self._reason and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise (ClientLeft if self._reason == "left" else ControllerStopping) from error

    def end(self, reason: Literal["left", "stopping"]) -> None:
        if self._reason is None:
            self._reason = reason
            self._task.cancel()

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # bytes after the body's end have no meaning
        self._left()

    def _left(self) -> None:
        self.end("left")
