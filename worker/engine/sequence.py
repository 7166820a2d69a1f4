"""One request on its way through the engine: WAITING -> RUNNING -> FINISHED; preemption leads back to WAITING.

Knows its tokens, which of them have keys and values in the cache, what its blocks are called, and where its images
stand. It does not know when it runs (`scheduler`) nor how a token is drawn (`sampler`).
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from worker.engine.blocks import BlockAllocator, BlockTable
from worker.engine.features import ImageFeatures
from worker.engine.prefix import BlockNames, ImagePlace, root_name
from worker.engine.protocol import EngineError, EngineRequest, FinishReason

if TYPE_CHECKING:
    from model.images import PreparedImage


class SequenceState(enum.Enum):
    WAITING = "waiting"  # holds no blocks
    RUNNING = "running"  # holds the blocks of its tokens
    FINISHED = "finished"  # holds nothing, and never runs again


@dataclass
class ImageSlot:
    """An image and its place: tokens `start` .. `end` - 1 of the sequence. `features` are held only while needed."""

    image: PreparedImage
    start: int
    end: int
    features: ImageFeatures | None = None


@dataclass
class Timings:
    """Moments on the engine's monotonic clock, in seconds; None: not yet."""

    arrived: float
    first_scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None


@dataclass(eq=False)
class Sequence:
    """`number` is the order of arrival; `limit` is the most tokens of prompt and answer together."""

    request: EngineRequest
    number: int
    limit: int
    images: tuple[ImageSlot, ...]
    table: BlockTable
    names: BlockNames
    timings: Timings
    tokens: list[int]
    state: SequenceState = SequenceState.WAITING
    computed: int = 0  # leading tokens whose keys and values are in the cache
    cached: int = 0  # of the prompt's tokens, those that were in the cache when the sequence first ran
    preemptions: int = 0
    answer_counts: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(
        cls,
        request: EngineRequest,
        *,
        number: int,
        context_length: int,
        image_token_id: int,
        allocator: BlockAllocator,
        weights: str,
        now: float,
    ) -> Sequence:
        """A waiting sequence. Raises EngineError if the images do not fit the prompt's image tokens."""
        images = place_images(request, image_token_id)
        places = [ImagePlace(slot.start, slot.end, slot.image.digest) for slot in images]
        return cls(
            request=request,
            number=number,
            limit=min(len(request.token_ids) + request.sampling.max_tokens, context_length),
            images=images,
            table=BlockTable(allocator),
            names=BlockNames(root_name(weights, request.cache_salt), allocator.block_size, places),
            timings=Timings(now),
            tokens=[*request.token_ids, *request.answer],
            answer_counts=Counter(request.answer),
        )

    @property
    def prompt_length(self) -> int:
        return len(self.request.token_ids)

    @property
    def answer_length(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def pending(self) -> int:
        """Tokens to compute before the next can be drawn."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """Only the token drawn last is left to compute."""
        return self.pending == 1 and self.computed >= self.prompt_length

    @property
    def remaining(self) -> int:
        """Tokens of work that are left at most: to compute and to draw."""
        return self.pending + self.limit - len(self.tokens)

    @cached_property
    def prompt_vocabulary(self) -> np.ndarray:
        """The distinct token ids of the prompt."""
        return np.unique(np.asarray(self.request.token_ids, np.int64))

    def images_in(self, start: int, end: int) -> list[ImageSlot]:
        """The images of which some token lies in `start` .. `end` - 1."""
        return [slot for slot in self.images if slot.start < end and start < slot.end]

    def append(self, token_id: int) -> FinishReason | None:
        """Takes the token drawn after all that is there; says if it is the last."""
        self.tokens.append(token_id)
        self.answer_counts[token_id] += 1
        if token_id in self.request.sampling.stop_token_ids:
            return "stop"
        return "length" if len(self.tokens) >= self.limit else None


def place_images(request: EngineRequest, image_token_id: int) -> tuple[ImageSlot, ...]:
    """Finds each image's run of image tokens. Raises EngineError with the numbers if they do not match."""
    places = np.flatnonzero(np.asarray(request.token_ids, np.int64) == image_token_id)
    expected = sum(image.layout.tokens for image in request.images)
    if len(places) != expected:
        raise EngineError(
            f"the prompt has {len(places)} image tokens, but its {len(request.images)} images take {expected}"
        )
    slots = []
    taken = 0
    for number, image in enumerate(request.images, 1):
        run = places[taken : taken + image.layout.tokens]
        taken += image.layout.tokens
        if run[-1] - run[0] != len(run) - 1:
            raise EngineError(f"the {len(run)} image tokens of image {number} do not stand together in the prompt")
        slots.append(ImageSlot(image, int(run[0]), int(run[-1]) + 1))
    return tuple(slots)
