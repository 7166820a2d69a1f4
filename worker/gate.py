"""How much is let in at once, and the way from open to drained. Counts only; knows nothing of HTTP or of the engine."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from server.protocol.errors import overloaded, unavailable


class Gate:
    """Bounds the requests in the house and the images that they hold, and says when the house is empty."""

    def __init__(self, max_requests: int, max_images: int) -> None:
        self._max_requests = max_requests
        self._max_images = max_images
        self.requests = 0
        self.images = 0
        self._stopping = False
        self._held = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def draining(self) -> bool:
        return self._stopping or self._held

    def drain(self) -> None:
        """From now on nobody is let in: the worker stops."""
        self._stopping = True

    def hold(self, held: bool) -> bool:
        """Lets nobody in while `held`, which an operator may take back; whether that is a change."""
        changed = held != self._held
        self._held = held
        return changed

    async def wait_empty(self) -> None:
        await self._empty.wait()

    def enter(self) -> Slot:
        """Raises ApiError: 503 while draining, 429 when full."""
        if self.draining:
            raise unavailable("This worker is draining and takes no new requests; send it to another.")
        if self.requests >= self._max_requests:
            raise overloaded(f"This worker has {self.requests} requests in hand, which is its limit.", retry_after=1)
        self.requests += 1
        self._empty.clear()
        return Slot(self)

    def hold_images(self, count: int) -> None:
        if self.images + count > self._max_images:
            raise overloaded(f"This worker holds {self.images} images, its limit is {self._max_images}.", retry_after=1)
        self.images += count

    def leave(self, images: int) -> None:
        self.requests -= 1
        self.images -= images
        if not self.requests:
            self._empty.set()


class Slot:
    """One request's place."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._images = 0

    def hold_images(self, count: int) -> None:
        """Counts the request's images until it leaves. Raises ApiError 429 when there are too many in the house."""
        self._gate.hold_images(count)
        self._images += count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.leave(self._images)
