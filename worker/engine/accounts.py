"""Whether the engine's books agree: each block free or held, by just those sequences that have it in their tables.

Counts and lists only. It is what the scheduler's tests hold after every step, and what a worker under `check_blocks`
holds while it answers; it changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from worker.engine.blocks import BlockAllocator
from worker.engine.features import FeatureCache
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence, SequenceState


class AccountingError(Exception):
    """Blocks or features are lost, or held by somebody who has no right to them; the message has the numbers."""


class Accounts:
    """The books of one engine. Called on its thread, between steps; the counts may be read from anywhere."""

    def __init__(self, scheduler: Scheduler, allocator: BlockAllocator, features: FeatureCache) -> None:
        self._scheduler = scheduler
        self._allocator = allocator
        self._features = features
        self.checks = 0
        self.faults = 0

    def check(self) -> None:
        """Raises AccountingError."""
        found = [*self._blocks(), *self._sequences(), *self._images()]
        self.checks += 1
        if found:
            self.faults += 1
            raise AccountingError(f"the engine's books do not agree: {'; '.join(found)}")

    def _blocks(self) -> Iterator[str]:
        yield from self._allocator.faults()
        tables = [sequence.table.blocks for sequence in (*self._scheduler.running, *self._scheduler.waiting)]
        holders = Counter(block for table in tables for block in table)
        if self._allocator.used != len(holders):
            yield f"{self._allocator.used} blocks are in use, {len(holders)} stand in the tables of sequences"
        for block, count in holders.items():
            if self._allocator.references(block) != count:
                yield f"block {block} has {self._allocator.references(block)} references and {count} holders"

    def _sequences(self) -> Iterator[str]:
        for state, sequences in (
            (SequenceState.RUNNING, self._scheduler.running),
            (SequenceState.WAITING, self._scheduler.waiting),
        ):
            for sequence in sequences:
                yield from _sequence(sequence, state)

    def _images(self) -> Iterator[str]:
        running = self._scheduler.running
        held = Counter(id(slot.features) for s in running for slot in s.images if slot.features is not None)
        entries = {id(features): features.holders for features in self._features.held()}
        for features, holders in entries.items():
            if held[features] != holders:
                yield f"an image's features have {holders} holders and stand in {held[features]} places of sequences"
        if lost := held.keys() - entries.keys():
            yield f"the features of {len(lost)} images stand in sequences and are not in the cache"
        if self._features.kept_bytes > self._features.budget:
            yield f"{self._features.kept_bytes} bytes of features are kept, of {self._features.budget} allowed"


def _sequence(sequence: Sequence, state: SequenceState) -> Iterator[str]:
    name = f"sequence {sequence.number}"
    if sequence.state is not state:
        yield f"{name} is {sequence.state.value} and stands among the {state.value}"
    if state is SequenceState.RUNNING:
        if sequence.table.missing(sequence.computed):
            yield f"{name} has {len(sequence.table.blocks)} blocks for {sequence.computed} computed tokens"
    elif sequence.table.blocks or any(slot.features is not None for slot in sequence.images):
        yield f"{name} is waiting and holds blocks or features"
