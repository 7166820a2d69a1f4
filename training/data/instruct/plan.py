"""Which pictures are asked about, in which kind: drawn by seed, whatever the order of the files.

Each kind puts all items in an order of its own, by a hash of seed, kind and id. A larger number of answers takes more
from the front of the same order, so that what was answered before is used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from training.data.instruct.items import Item
from training.data.instruct.kinds import Kind


@dataclass(frozen=True)
class Task:
    """One answer to be had."""

    kind: Kind
    item: Item

    @property
    def key(self) -> str:
        """Names it in the journal: a picture of which other things are known is another task."""
        return f"{self.kind}/{self.item.id}/{self.item.digest}"


def drawn(seed: int, *names: str) -> int:
    """A number that depends on seed and names alone, 64 bits."""
    return int.from_bytes(blake2b("\0".join((str(seed), *names)).encode(), digest_size=8).digest(), "big")


class Plan:
    def __init__(self, items: Sequence[Item], seed: int) -> None:
        self.seed = seed
        self._items = items
        self._orders = {
            kind: sorted(range(len(items)), key=lambda at: (drawn(seed, kind, items[at].id), items[at].id))
            for kind in Kind
        }

    @property
    def items(self) -> int:
        return len(self._items)

    def tasks(self, kind: Kind, start: int, stop: int) -> list[Task]:
        return [Task(kind, self._items[at]) for at in self._orders[kind][start:stop]]
