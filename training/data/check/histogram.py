"""Counts of numbers by size, in memory that does not grow: bins a quarter of a power of two wide."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

_BINS_PER_DOUBLING = 4


@dataclass
class Histogram:
    """Of numbers from 0."""

    count: int = 0
    total: int = 0
    least: int = 0
    most: int = 0
    bins: Counter[int] = field(default_factory=Counter)

    def add(self, number: int) -> None:
        self.least = number if not self.count else min(self.least, number)
        self.most = max(self.most, number)
        self.count += 1
        self.total += number
        self.bins[0 if number < 1 else 1 + int(math.log2(number) * _BINS_PER_DOUBLING)] += 1

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def bars(self) -> list[tuple[int, int, int]]:
        """(from, below, how many) of each bin, without gaps."""
        if not self.bins:
            return []
        return [(_edge(at), _edge(at + 1), self.bins[at]) for at in range(min(self.bins), max(self.bins) + 1)]


def _edge(at: int) -> int:
    return 0 if at == 0 else math.ceil(2 ** ((at - 1) / _BINS_PER_DOUBLING))
