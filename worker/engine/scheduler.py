"""What each step computes: decodes of all running answers first, then prefill chunks in order of arrival.

Pure bookkeeping, no tensors. Rules that hold always:
- Running sequences arrived before waiting ones, and both stand in order of arrival.
- A sequence is admitted when the blocks for all of its tokens are free, with one to spare for each that runs already.
- When a decode finds no free block, the youngest running sequence gives up its blocks and waits to be computed anew; a
  sequence that has none younger than itself keeps its blocks and sits the step out. So the oldest always goes on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from worker.engine.blocks import BlockAllocator
from worker.engine.config import EngineConfig
from worker.engine.sequence import ImageSlot, Sequence, SequenceState


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` .. `end` - 1 of a sequence; the images of `encode` must be encoded before."""

    sequence: Sequence
    start: int
    end: int
    draws: bool  # the chunk ends at the last known token: the next one is drawn from it
    encode: tuple[ImageSlot, ...] = ()

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Step:
    """One pass through the language model."""

    decodes: tuple[Chunk, ...]
    prefills: tuple[Chunk, ...]
    preemptions: int

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return self.decodes + self.prefills


class Scheduler:
    def __init__(self, config: EngineConfig, allocator: BlockAllocator) -> None:
        self._config = config
        self._allocator = allocator
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence behind all others."""
        self.waiting.append(sequence)

    def schedule(self) -> Step:
        """Picks the next step. It has at least one chunk if any sequence waits or runs."""
        decodes, preemptions = self._decodes()
        tokens = self._config.max_step_tokens - len(decodes)
        tiles = self._config.max_step_tiles
        prefills: list[Chunk] = []
        for sequence in self._prefilling():
            if tokens <= 0:
                break
            chunk = self._prefill(sequence, tokens, tiles)
            if chunk.length:
                prefills.append(chunk)
                tokens -= chunk.length
                tiles -= sum(slot.image.layout.tiles for slot in chunk.encode)
        return Step(tuple(decodes), tuple(prefills), preemptions)

    def complete(self, chunk: Chunk) -> None:
        """Notes that a chunk's keys and values are in the cache, and lets image features go that lie behind."""
        chunk.sequence.computed = chunk.end
        chunk.sequence.drop_features(before=chunk.end)

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

    def _free(self, sequence: Sequence) -> None:
        sequence.table.clear()
        sequence.drop_features()
        sequence.computed = 0

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

    def _prefilling(self) -> list[Sequence]:
        """Running sequences with tokens to prefill, then those that can be admitted now (and are)."""
        sequences = [sequence for sequence in self.running if not sequence.decoding]
        budget = self._config.max_step_tokens - sum(sequence.pending for sequence in sequences)
        while self.waiting and budget > 0 and len(self.running) < self._config.max_running:
            sequence = self.waiting[0]
            spare = len(self.running)
            if sequence.table.missing(len(sequence.tokens)) + spare > self._allocator.free:
                break
            self.waiting.popleft()
            sequence.table.grow(len(sequence.tokens))
            sequence.state = SequenceState.RUNNING
            self.running.append(sequence)
            sequences.append(sequence)
            budget -= sequence.pending
        return sequences

    def _prefill(self, sequence: Sequence, tokens: int, tiles: int) -> Chunk:
        """As far as the budgets of tokens and tiles reach; an image that fits no budget goes when none went before."""
        end = min(len(sequence.tokens), sequence.computed + tokens)
        encode: list[ImageSlot] = []
        for slot in sequence.images_in(sequence.computed, end):
            if slot.features is not None:
                continue
            cost = slot.image.layout.tiles
            if cost > tiles and tiles < self._config.max_step_tiles:
                end = max(slot.start, sequence.computed)
                break
            encode.append(slot)
            tiles -= cost
        return Chunk(sequence, sequence.computed, end, draws=end == len(sequence.tokens), encode=tuple(encode))
