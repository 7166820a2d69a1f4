"""What a check of rows finds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from training.data.check.histogram import Histogram

KINDS = ("row", "image", "tokens", "duplicate", "duplicate-id")
_SHOWN = 200
_SOURCES = 1000


class Finding(NamedTuple):
    kind: str  # one of KINDS
    where: str
    reason: str


@dataclass
class Checked:
    """Counts, histograms and the first findings; `allowed` kinds are counted and do no harm."""

    allowed: frozenset[str]
    max_tokens: int | None = None
    rows: int = 0
    images: int = 0
    answers: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    tokens: Histogram = field(default_factory=Histogram)
    characters: Histogram = field(default_factory=Histogram)
    questions: Histogram = field(default_factory=Histogram)
    widths: Histogram = field(default_factory=Histogram)
    heights: Histogram = field(default_factory=Histogram)
    first: list[Finding] = field(default_factory=list)

    @property
    def bad(self) -> int:
        return sum(count for kind, count in self.kinds.items() if kind not in self.allowed)

    def add(self, finding: Finding) -> None:
        self.kinds[finding.kind] += 1
        if len(self.first) < _SHOWN and finding.kind not in self.allowed:
            self.first.append(finding)

    def count_source(self, source: str) -> None:
        """Beyond a bound, new names count as others."""
        self.sources[source if source in self.sources or len(self.sources) < _SOURCES else "others"] += 1
