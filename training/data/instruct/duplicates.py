"""Near-duplicates among answers, by MinHash over runs of three words. Memory is fixed when the check is made.

Two texts are near-duplicates when the estimated share of word runs that they have in common (Jaccard, over 64 hashes)
reaches the threshold. Candidates are found by 16 bands of 4 hashes: texts of .8 in common meet with probability .9998
(1 - (1 - .8^4)^16). The table of each band is mapped directly, the newest text winning a slot: at one text in
four slots the loss of some bands leaves the others.
"""

from __future__ import annotations

import re
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_HASHES = 64
_BANDS = 16
_RUN = 3  # words
_WORDS = re.compile(r"\w+")
_PRIME = (1 << 31) - 1  # products of two numbers below it fit 64 bits


class NearDuplicates:
    def __init__(self, capacity: int, threshold: float = 0.8) -> None:
        """`capacity`: texts that are remembered, about 512 bytes each; beyond it the oldest are forgotten."""
        self.threshold = threshold
        self._capacity = max(1, capacity)
        self._slots = 4 * self._capacity
        random = np.random.default_rng(0)
        self._factors = random.integers(1, _PRIME, _HASHES, dtype=np.uint64)
        self._offsets = random.integers(0, _PRIME, _HASHES, dtype=np.uint64)
        self._signatures = np.zeros((self._capacity, _HASHES), np.uint32)
        self._tables = np.full((_BANDS, self._slots), -1, np.int32)
        self._names: list[str] = []
        self._added = 0

    def add(self, name: str, text: str) -> str | None:
        """Remembers the text, unless it is close to one that is remembered: then that one's name is returned."""
        signature = self._signature(text)
        slots = [
            int.from_bytes(blake2b(part.tobytes(), digest_size=8).digest(), "little") % self._slots
            for part in signature.reshape(_BANDS, -1)
        ]
        candidates = {int(self._tables[band, slot]) for band, slot in enumerate(slots)} - {-1}
        for candidate in sorted(candidates):
            alike = float((self._signatures[candidate] == signature).mean())
            if alike >= self.threshold:
                return self._names[candidate]
        place = self._added % self._capacity
        if self._added < self._capacity:
            self._names.append(name)
        else:
            self._names[place] = name
        self._signatures[place] = signature
        for band, slot in enumerate(slots):
            self._tables[band, slot] = place
        self._added += 1
        return None

    def _signature(self, text: str) -> NDArray[np.uint32]:
        words = _WORDS.findall(text.lower())
        runs = {" ".join(words[at : at + _RUN]) for at in range(max(1, len(words) - _RUN + 1))}
        digests = b"".join(blake2b(run.encode(), digest_size=4).digest() for run in sorted(runs))
        values = np.frombuffer(digests, "<u4").astype(np.uint64) % _PRIME
        hashed = (values[:, None] * self._factors + self._offsets) % _PRIME
        smallest: NDArray[np.uint32] = hashed.min(axis=0).astype(np.uint32)
        return smallest
