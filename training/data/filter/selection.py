"""The rule, on numbers alone: which captions are taken, when each is told by the phrases that it holds.

A phrase's frequency is the number of captions that hold it. Phrases of fewer than `least` are skipped. Of the others,
from the rarest up, all captions that hold the phrase are taken, or a random `most` of them where there are more. What
is taken for one phrase does not depend on what was taken for another, so the order changes nothing, and phrases can be
worked off bucket by bucket: memory holds one bucket, and one bit for each caption.

A phrase is its 128-bit digest here. The random `most` are those whose (seed, phrase, caption) hash lowest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from training.data.rows import Spill

_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("caption", "<u8")])
_BYTES_A_BUCKET = 8 << 20  # of captions, whose phrases take about as much again
_MOST_BUCKETS = 4096


@dataclass(frozen=True)
class Rule:
    least: int = 3
    most: int = 100
    seed: int = 0


@dataclass
class Counts:
    """What the rule met."""

    captions: int = 0
    phrases: int = 0  # distinct
    skipped: int = 0  # of them, too rare
    capped: int = 0  # of them, thinned out
    taken: int = 0  # captions


class Selection:
    """A context manager: captions in order, then `finish`, then `takes`."""

    def __init__(self, rule: Rule, folder: Path, expected_bytes: int) -> None:
        """`folder`: where phrases wait on disk, about 28 bytes for each of each caption."""
        self.counts = Counts()
        self._rule = rule
        self._buckets = min(_MOST_BUCKETS, 1 + expected_bytes // _BYTES_A_BUCKET)
        self._spill = Spill(folder)
        self._bits = np.zeros(0, np.uint8)

    def __enter__(self) -> Selection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spill.__exit__(kind, error, trace)

    def add(self, phrases: Iterable[str]) -> None:
        """The next caption's phrases; one that comes twice counts once."""
        number = self.counts.captions.to_bytes(8, "little")
        for phrase in set(phrases):
            digest = blake2b(phrase.encode(), digest_size=16).digest()
            self._spill.add(int.from_bytes(digest[:4], "little") % self._buckets, digest + number)
        self.counts.captions += 1

    def finish(self) -> None:
        self._bits = np.zeros((self.counts.captions + 7) // 8, np.uint8)
        for records in self._spill.buckets():
            captions = self._of_bucket(np.frombuffer(b"".join(records), _RECORD))
            np.bitwise_or.at(self._bits, captions >> 3, (1 << (captions & 7)).astype(np.uint8))
        self.counts.taken = int(np.bitwise_count(self._bits).sum())

    def takes(self, caption: int) -> bool:
        """Numbers from 0, in the order in which they were added."""
        return bool(self._bits[caption >> 3] >> (caption & 7) & 1)

    def _of_bucket(self, records: NDArray[np.void]) -> NDArray[np.int64]:
        """The captions taken for the phrases of one bucket."""
        order = np.lexsort((self._rank(records), records["low"], records["high"]))
        records = records[order]
        fresh = np.ones(len(records), bool)
        fresh[1:] = (records["high"][1:] != records["high"][:-1]) | (records["low"][1:] != records["low"][:-1])
        starts = np.flatnonzero(fresh)
        frequencies = np.diff(starts, append=len(records))
        self.counts.phrases += len(starts)
        self.counts.skipped += int((frequencies < self._rule.least).sum())
        self.counts.capped += int((frequencies > self._rule.most).sum())
        places = np.arange(len(records)) - np.repeat(starts, frequencies)
        frequent = np.repeat(frequencies >= self._rule.least, frequencies)
        taken: NDArray[np.int64] = records["caption"][frequent & (places < self._rule.most)].astype(np.int64)
        return taken

    def _rank(self, records: NDArray[np.void]) -> NDArray[np.uint64]:
        seed = np.full(len(records), self._rule.seed, np.uint64)
        return mixed(mixed(mixed(seed) ^ records["low"]) ^ records["caption"])


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: each number to another, without visible order (Steele, Lea and Flood, 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
