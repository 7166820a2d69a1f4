"""Rows that come twice, found by digests of 16 bytes each: the only memory of a check that grows with the rows."""

from __future__ import annotations

import hashlib

import numpy as np

_DIGEST = 16
_FIRST = 4096


class Twins:
    """Digests in the order of the rows."""

    def __init__(self) -> None:
        self._digests = np.zeros(_FIRST, dtype=f"S{_DIGEST}")
        self._numbers = np.zeros(_FIRST, dtype=np.int64)
        self._count = 0

    def add(self, number: int, said: bytes) -> None:
        """`number` names the row."""
        if self._count == len(self._digests):
            self._digests = np.resize(self._digests, 2 * self._count)
            self._numbers = np.resize(self._numbers, 2 * self._count)
        self._digests[self._count] = hashlib.blake2b(said, digest_size=_DIGEST).digest()
        self._numbers[self._count] = number
        self._count += 1

    def pairs(self) -> list[tuple[int, int]]:
        """(row, the first row that says the same), by row."""
        digests, numbers = self._digests[: self._count], self._numbers[: self._count]
        order = np.argsort(digests, kind="stable")
        found, first = [], 0
        ordered = digests[order]
        alike = ordered[1:] == ordered[:-1]
        for place in range(1, self._count):
            if alike[place - 1]:
                found.append((int(numbers[order[place]]), int(numbers[order[first]])))
            else:
                first = place
        return sorted(found)
