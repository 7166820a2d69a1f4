"""Whether a request may go on: room in this controller and before the workers, and pictures that can fit the context.

Held before anything is decoded or queued. What a key may use, and limits across controllers, are `server.limits`'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from model.geometry import Canvas, ImageGeometry
from model.image_file import ImageHeader
from server.metrics import Metrics
from server.protocol.errors import bad_request, overloaded
from server.protocol.registration import ImageCard, ModelCard
from server.registry.table import Worker
from server.settings import Settings
from server.stats import WINDOW, Rate

_SHORTEST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds that a client without room is told to wait


class Room:
    """How many requests, and how many bytes of them, are under way."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._max_requests = settings.max_inflight
        self._max_bytes = settings.max_inflight_bytes
        self._max_queue = settings.max_queue
        self._metrics = metrics
        self.requests = 0
        self.bytes = 0
        self._answered = Rate(WINDOW)

    @contextmanager
    def enter(self) -> Iterator[Place]:
        """Raises ApiError 429 when the controller is full."""
        if self.requests >= self._max_requests:
            raise overloaded(f"The server is full: {self._max_requests} requests are under way.", self._retry_after())
        self.requests += 1
        self._metrics.in_flight.set(self.requests)
        place = Place(self)
        try:
            yield place
        finally:
            self.requests -= 1
            self.bytes -= place.bytes
            self._answered.add(place.answered)
            self._metrics.in_flight.set(self.requests)
            self._metrics.inflight_bytes.set(self.bytes)

    def take(self, size: int) -> None:
        if self.bytes + size > self._max_bytes:
            raise overloaded("The server is full: too much request data is under way.", self._retry_after())
        self.bytes += size
        self._metrics.inflight_bytes.set(self.bytes)

    def check_queue(self, workers: Sequence[Worker]) -> None:
        """Raises ApiError 429 when each of a model's workers has as many requests waiting as may wait."""
        fit = [worker for worker in workers if worker.healthy]
        if self._max_queue and fit and all(_waiting(worker) >= self._max_queue for worker in fit):
            total = sum(_waiting(worker) for worker in fit)
            raise overloaded(f"The workers of this model are full: {total} requests wait.", self._retry_after(total))

    def _retry_after(self, ahead: int | None = None) -> float:
        """Seconds until about half of the work ahead is done, by the pace of the last minute."""
        pace = self._answered.per_second()
        ahead = self.requests if ahead is None else ahead
        return min(_LONGEST_WAIT, max(_SHORTEST_WAIT, ahead / 2 / pace)) if pace else _SHORTEST_WAIT


class Place:
    """One request's part of the room, given back when it ends."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.bytes = 0
        self.answered = False  # by a worker

    def reserve(self, size: int) -> None:
        """Raises ApiError 429."""
        self._room.take(size)
        self.bytes += size


def _waiting(worker: Worker) -> int:
    """Requests that wait there: as it reported, or as this controller knows better since."""
    registration, load = worker.record.registration, worker.record.load
    return max(load.waiting, worker.in_flight - registration.max_running)


def image_geometry(card: ImageCard) -> ImageGeometry:
    """How the model's workers count pictures."""
    return ImageGeometry(
        tile=card.tile,
        grid=card.grid,
        canvases=tuple(Canvas(*canvas) for canvas in card.canvases),
        extra_tokens=card.extra_tokens,
        unpad=card.unpad,
        max_tiles=card.max_tiles,
        several_images=card.several_images,
        newline=card.newline,
    )


def image_tokens(card: ModelCard, headers: Sequence[ImageHeader]) -> int:
    """Counts what the pictures cost in tokens; raises ApiError 400 when they alone exceed the context."""
    if not headers:
        return 0
    if card.image is None:
        raise bad_request(
            f"The model {card.name!r} does not take images.", param="messages", code="images_not_supported"
        )
    geometry = image_geometry(card.image)
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
