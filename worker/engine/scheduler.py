"""Which tokens and which image tiles go through the model next. Counts only: no tensors, no clock.

A step mixes decodes (one token of each answer that runs) with chunks of prompts, under a budget of tokens; and it
encodes image tiles, before its tokens, under a budget of tiles.

- Decodes come first: an answer once begun keeps its pace. Prefill takes what the token budget leaves, oldest first, and
  only then are waiting sequences admitted, in order. The end of a prompt goes over the budget rather than into a step
  of its own where it is short: few tokens cost more each, and the first token of the answer would wait for them.
- A sequence is admitted when blocks for all its tokens are there and one is left for each that runs; what the prefix
  cache holds of it is taken up, and computed no more. Only the last token always runs, for the next is drawn from it.
- A sequence of which a good part is being computed by another right now waits until it can share that.
- An image's tiles are encoded once, over as many steps as the budget of tiles makes of it; a chunk ends before an image
  that is not finished. Sequences that ask about the same image hold the same features.
- When blocks run out for a decode, the youngest running sequence gives up its blocks and waits to be computed anew; a
  sequence that has none younger than itself keeps its blocks and sits the step out. So the oldest always goes on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from worker.engine.blocks import BlockAllocator
from worker.engine.config import EngineConfig
from worker.engine.features import FeatureCache, ImageFeatures
from worker.engine.sequence import ImageSlot, Sequence, SequenceState

ENDS = 4  # the end of a prompt that may go over the budget is one such part of it, at most


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` .. `end` - 1 of a sequence, at least one."""

    sequence: Sequence
    start: int
    end: int
    draws: bool  # the chunk ends at the last known token: the next one is drawn from it

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Encoding:
    """Tiles `start` .. `end` - 1 of an image, to go through the vision tower."""

    features: ImageFeatures
    start: int
    end: int


@dataclass(frozen=True)
class Step:
    """One pass: the tiles of `encodings` through the vision tower, then the chunks through the language model."""

    decodes: tuple[Chunk, ...] = ()
    prefills: tuple[Chunk, ...] = ()
    encodings: tuple[Encoding, ...] = ()
    preemptions: int = 0
    prefix: CacheUse = field(default_factory=lambda: CacheUse())  # tokens
    images: CacheUse = field(default_factory=lambda: CacheUse())  # images

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return self.decodes + self.prefills

    @property
    def empty(self) -> bool:
        return not (self.decodes or self.prefills or self.encodings)


@dataclass(frozen=True)
class CacheUse:
    """How much was looked for in a cache, and how much of it found."""

    queries: int = 0
    hits: int = 0

    def __add__(self, other: CacheUse) -> CacheUse:
        return CacheUse(self.queries + other.queries, self.hits + other.hits)


@dataclass
class _Budget:
    """What is left of one step."""

    tokens: int
    tiles: int
    encodings: list[Encoding] = field(default_factory=list)
    prefix: CacheUse = CacheUse()
    images: CacheUse = CacheUse()


class Scheduler:
    def __init__(self, config: EngineConfig, allocator: BlockAllocator, features: FeatureCache) -> None:
        self._config = config
        self._allocator = allocator
        self._features = features
        self._promised: dict[bytes, Sequence] = {}  # names of blocks that running sequences are about to fill
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence behind all others."""
        self.waiting.append(sequence)

    def schedule(self) -> Step:
        """Picks the next step. It is not empty if any sequence waits or runs."""
        decodes, preemptions = self._decodes()
        budget = _Budget(self._config.max_step_tokens - len(decodes), self._config.max_step_tiles)
        prefills: list[Chunk] = []
        for sequence in self._prefilling(budget):
            if budget.tokens <= 0:
                break
            chunk = self._prefill(sequence, budget)
            if chunk.length:
                prefills.append(chunk)
                budget.tokens -= chunk.length
        return Step(tuple(decodes), tuple(prefills), tuple(budget.encodings), preemptions, budget.prefix, budget.images)

    def complete(self, chunk: Chunk) -> None:
        """Notes that a chunk's keys and values are in the cache: full blocks can be found from now on, and features of
        images that lie behind are let go."""
        sequence = chunk.sequence
        sequence.computed = chunk.end
        full = chunk.end // self._allocator.block_size
        if self._config.prefix_cache and full > chunk.start // self._allocator.block_size:
            names = sequence.names.first(full, sequence.tokens)
            for index in range(chunk.start // self._allocator.block_size, full):
                self._allocator.name(sequence.table.blocks[index], names[index])
                self._keep_promise(sequence, names[index])
        for slot in sequence.images:
            if slot.end <= chunk.end:
                self._release(slot)

    def fail(self, sequence: Sequence) -> None:
        """Takes out a sequence whose keys and values may be spoilt: nobody is to find them."""
        self._allocator.forget(sequence.table.blocks)
        self.finish(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it stands, and frees what it holds."""
        if sequence.state is SequenceState.WAITING:
            self.waiting.remove(sequence)
        elif sequence.state is SequenceState.RUNNING:
            self.running.remove(sequence)
        sequence.state = SequenceState.FINISHED
        self._free(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue; its tokens, drawn ones included, are computed anew later."""
        self.running.remove(sequence)
        self._free(sequence)
        sequence.state = SequenceState.WAITING
        sequence.preemptions += 1
        self.waiting.appendleft(sequence)

    def abandon(self, features: ImageFeatures) -> list[Sequence]:
        """Forgets features that could not be computed; returns the running sequences that needed them."""
        self._features.discard(features)
        return [s for s in self.running if any(slot.features is features for slot in s.images)]

    def _free(self, sequence: Sequence) -> None:
        if sequence.table.blocks and self._config.prefix_cache:
            for name in sequence.names.first(self._full_blocks(sequence), sequence.tokens):
                self._keep_promise(sequence, name)
        sequence.table.clear()
        sequence.computed = 0
        for slot in sequence.images:
            self._release(slot)

    def _release(self, slot: ImageSlot) -> None:
        if slot.features is not None:
            self._features.release(slot.features)
            slot.features = None

    def _decodes(self) -> tuple[list[Chunk], int]:
        """One token of each decoding sequence that has, or can get, the block for it; and how many were preempted."""
        chunks = []
        preemptions = 0
        for sequence in list(self.running):
            if sequence.state is not SequenceState.RUNNING or not sequence.decoding:
                continue
            length = len(sequence.tokens)
            while sequence.table.missing(length) > self._allocator.free and self.running[-1] is not sequence:
                self.preempt(self.running[-1])
                preemptions += 1
            if sequence.table.missing(length) <= self._allocator.free:
                sequence.table.grow(length)
                chunks.append(Chunk(sequence, sequence.computed, length, draws=True))
        return chunks, preemptions

    def _prefilling(self, budget: _Budget) -> list[Sequence]:
        """Running sequences with tokens to prefill, then those that can be admitted now (and are)."""
        sequences = [sequence for sequence in self.running if not sequence.decoding]
        tokens = self._config.max_step_tokens - sum(sequence.pending for sequence in sequences)
        for sequence in list(self.waiting):
            if tokens <= 0 or len(self.running) >= self._config.max_running:
                break
            cached = self._cached_blocks(sequence)
            if self._better_later(sequence, len(cached)):
                continue
            missing = self._allocator.blocks_for(len(sequence.tokens)) - len(cached)
            if missing + self._allocator.idle(cached) + len(self.running) > self._allocator.free:
                break
            self._admit(sequence, cached, budget)
            sequences.append(sequence)
            tokens -= sequence.pending
        return sequences

    def _admit(self, sequence: Sequence, cached: list[int], budget: _Budget) -> None:
        self.waiting.remove(sequence)
        sequence.table.adopt(cached)
        sequence.table.grow(len(sequence.tokens))
        sequence.computed = len(cached) * self._allocator.block_size
        sequence.state = SequenceState.RUNNING
        self.running.append(sequence)
        if not self._config.prefix_cache:
            return
        if not sequence.preemptions:
            sequence.cached = min(sequence.computed, sequence.prompt_length)
            budget.prefix += CacheUse(sequence.prompt_length, sequence.cached)
        for name in sequence.names.first(self._full_blocks(sequence), sequence.tokens)[len(cached) :]:
            self._promised.setdefault(name, sequence)

    def _cached_blocks(self, sequence: Sequence) -> list[int]:
        """The blocks that hold the beginning of the sequence already; its last token is not among them."""
        if not self._config.prefix_cache:
            return []
        blocks = (len(sequence.tokens) - 1) // self._allocator.block_size
        return self._allocator.find(sequence.names.first(blocks, sequence.tokens))

    def _better_later(self, sequence: Sequence, cached: int) -> bool:
        """Whether half or more of what it would compute is being computed by another sequence now."""
        if not self._promised:
            return False
        names = sequence.names.first((len(sequence.tokens) - 1) // self._allocator.block_size, sequence.tokens)
        shared = 0
        for name in names[cached:]:
            if name not in self._promised:
                break
            shared += self._allocator.block_size
        return shared > 0 and 2 * shared >= len(sequence.tokens) - cached * self._allocator.block_size

    def _full_blocks(self, sequence: Sequence) -> int:
        return len(sequence.tokens) // self._allocator.block_size

    def _keep_promise(self, sequence: Sequence, name: bytes) -> None:
        if self._promised.get(name) is sequence:
            del self._promised[name]

    def _prefill(self, sequence: Sequence, budget: _Budget) -> Chunk:
        """As far as the tokens reach, and the images that are or will be there in this step; maybe nowhere."""
        end = sequence.computed + budget.tokens
        if len(sequence.tokens) - end <= self._config.max_step_tokens // ENDS:
            end = len(sequence.tokens)
        for slot in sequence.images_in(sequence.computed, end):
            if slot.features is None:
                slot.features, known = self._features.acquire(slot.image, sequence.request.cache_salt)
                budget.images += CacheUse(1, int(known))
            if not self._plan(slot.features, budget):
                end = max(slot.start, sequence.computed)
                break
        return Chunk(sequence, sequence.computed, end, draws=end == len(sequence.tokens))

    def _plan(self, features: ImageFeatures, budget: _Budget) -> bool:
        """Plans as many tiles as the budget allows; whether the features will be there in this step."""
        if features.merged is not None:
            return True
        count = min(features.tiles - features.planned, budget.tiles)
        if count:
            budget.encodings.append(Encoding(features, features.planned, features.planned + count))
            features.planned += count
            budget.tiles -= count
        return features.planned == features.tiles
