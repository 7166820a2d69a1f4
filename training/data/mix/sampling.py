"""Which of a file's rows are drawn: all, first:N, end:N, random:N, N%, and first, end or random of N%.

The words are those of LLaVA-NeXT's YAML files; N% alone draws at random. A part of a row counts as a whole one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from training.data.errors import DataError

Kind = Literal["all", "first", "end", "random"]

_KINDS: dict[str, Kind] = {"first": "first", "end": "end", "random": "random"}
_FORM = re.compile(r"(?:(first|end|random):)?(\d+(?:\.\d+)?)(%?)")


@dataclass(frozen=True)
class Sampling:
    """`amount` rows, or per cent of the rows."""

    kind: Kind
    amount: float = 100.0
    percent: bool = True

    @staticmethod
    def parse(text: str) -> Sampling:
        """Raises DataError for words of no such form."""
        if text == "all":
            return Sampling("all")
        found = _FORM.fullmatch(text)
        kind, amount, percent = found.groups() if found else (None, "", "")
        if not found or (kind is None and not percent) or ("." in amount and not percent):
            raise DataError(f"sampling {text!r}: expected all, first:N, end:N, random:N or N%")
        if percent and float(amount) > 100:
            raise DataError(f"sampling {text!r}: more than all rows, and none is written twice")
        return Sampling(_KINDS[kind or "random"], float(amount), bool(percent))

    @property
    def needs_count(self) -> bool:
        """Whether the number of rows must be known before the first is read."""
        return self.kind in ("end", "random") or (self.kind == "first" and self.percent)

    def size(self, rows: int) -> int:
        """How many of so many rows are drawn."""
        if self.kind == "all":
            return rows
        if self.percent:
            return min(rows, -int(-rows * self.amount // 100))
        return min(rows, int(self.amount))

    def asks_for_more_than(self, rows: int) -> bool:
        return not self.percent and int(self.amount) > rows

    def picks(self, rows: int, chance: Random) -> Iterator[bool]:
        """For each row in turn whether it is drawn. Without `needs_count`, `rows` may be any number."""
        if self.kind == "all":
            while True:
                yield True
        size = int(self.amount) if self.kind == "first" and not self.percent else self.size(rows)
        if self.kind == "random":
            yield from choose(rows, size, chance)
            return
        start = rows - size if self.kind == "end" else 0
        place = 0
        while True:
            yield start <= place < start + size
            place += 1


def choose(rows: int, size: int, chance: Random) -> Iterator[bool]:
    """Exactly `size` of `rows`, each set of them as likely as any other (Knuth's algorithm S)."""
    for left in range(rows, 0, -1):
        taken = chance.random() * left < size
        size -= taken
        yield taken


def shares(total: int, weights: Sequence[float], available: Sequence[int]) -> list[int]:
    """`total` rows shared out by weight; whoever has too few gives all, and the others share the rest.

    Largest remainders round up, the first of equals. Raises DataError when there are too few rows altogether.
    """
    if total > sum(rows for rows, weight in zip(available, weights, strict=True) if weight):
        raise DataError(f"total is {total:,}, but only {sum(available):,} rows can be drawn, each once")
    given = [0] * len(weights)
    open_places = [place for place, weight in enumerate(weights) if weight]
    while open_places:
        left = total - sum(given)
        whole = sum(weights[place] for place in open_places)
        short = [place for place in open_places if available[place] <= left * weights[place] / whole]
        if not short:
            break
        for place in short:
            given[place] = available[place]
        open_places = [place for place in open_places if place not in short]
    if not open_places:
        return given
    left, whole = total - sum(given), sum(weights[place] for place in open_places)
    exact = {place: left * weights[place] / whole for place in open_places}
    for place in open_places:
        given[place] = int(exact[place])
    rest = total - sum(given)
    for place in sorted(open_places, key=lambda place: (given[place] - exact[place], place))[:rest]:
        given[place] += 1
    return given
