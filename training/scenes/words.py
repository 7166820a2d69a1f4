"""The words that scenes print: which exist, and which are held out from training.

words.txt holds common English words of 3-6 letters that are one token each for SmolLM2's tokenizer, most frequent
first (token order of the vocabulary, intersected with Debian's wamerican-small).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

WORDS_FILE = Path(__file__).with_name("words.txt")
HELD_OUT_SHARE = 0.10


def is_held_out(word: str) -> bool:
    """Whether `word` never appears in training. A function of the word alone, so that no seed can leak it."""
    digest = hashlib.sha256(word.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


@lru_cache(maxsize=8)
def words(*, held_out: bool, most_frequent: int | None = None) -> tuple[str, ...]:
    """The seen or the held-out words among the `most_frequent` (all when None)."""
    every = WORDS_FILE.read_text("utf-8").split()[:most_frequent]
    return tuple(word for word in every if is_held_out(word) == held_out)
