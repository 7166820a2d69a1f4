"""Whether a request may go on: room in this controller, and pictures that can fit the model's context.

Held before anything is decoded or queued. What a tenant may use, and limits across controllers, are not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from model.geometry import Canvas, ImageGeometry
from model.image_file import ImageHeader
from server.metrics import Metrics
from server.protocol.errors import bad_request, overloaded
from server.protocol.registration import ModelCard
from server.settings import Settings

_RETRY_AFTER = 1.0  # seconds


class Room:
    """How many requests, and how many bytes of them, are under way."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._max_requests = settings.max_inflight
        self._max_bytes = settings.max_inflight_bytes
        self._metrics = metrics
        self.requests = 0
        self.bytes = 0

    @contextmanager
    def enter(self) -> Iterator[Place]:
        """Raises ApiError 429 when the controller is full."""
        if self.requests >= self._max_requests:
            raise overloaded(f"The server is full: {self._max_requests} requests are under way.", _RETRY_AFTER)
        self.requests += 1
        self._metrics.in_flight.set(self.requests)
        place = Place(self)
        try:
            yield place
        finally:
            self.requests -= 1
            self.bytes -= place.bytes
            self._metrics.in_flight.set(self.requests)
            self._metrics.inflight_bytes.set(self.bytes)

    def take(self, size: int) -> None:
        if self.bytes + size > self._max_bytes:
            raise overloaded("The server is full: too much request data is under way.", _RETRY_AFTER)
        self.bytes += size
        self._metrics.inflight_bytes.set(self.bytes)


class Place:
    """One request's part of the room, given back when it ends."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.bytes = 0

    def reserve(self, size: int) -> None:
        """Raises ApiError 429."""
        self._room.take(size)
        self.bytes += size


def image_tokens(card: ModelCard, headers: Sequence[ImageHeader]) -> int:
    """Counts what the pictures cost in tokens; raises ApiError 400 when they alone exceed the context."""
    if not headers:
        return 0
    if card.image is None:
        raise bad_request(
            f"The model {card.name!r} does not take images.", param="messages", code="images_not_supported"
        )
    geometry = ImageGeometry(
        tile=card.image.tile,
        grid=card.image.grid,
        canvases=tuple(Canvas(*canvas) for canvas in card.image.canvases),
        extra_tokens=card.image.extra_tokens,
        unpad=card.image.unpad,
        max_tiles=card.image.max_tiles,
        several_images=card.image.several_images,
        newline=card.image.newline,
    )
    counts = [geometry.layout(header.width, header.height, len(headers)).tokens for header in headers]
    total = sum(counts)
    if total >= card.context_length:
        each = " + ".join(str(count) for count in counts[:8]) + (" + ..." if len(counts) > 8 else "")
        raise bad_request(
            f"The images alone take {total} tokens ({each}); the model's context is {card.context_length} tokens, "
            "prompt and answer together. Send fewer or smaller images.",
            param="messages",
            code="context_length_exceeded",
        )
    return total
