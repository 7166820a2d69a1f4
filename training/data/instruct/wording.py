"""Finds words and phrases in text, plurals included. Rules of English spelling, no dictionary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_APOSTROPHES = str.maketrans("’", "'")


def plain(text: str) -> str:
    """Lower case, one space between words."""
    return " ".join(text.lower().translate(_APOSTROPHES).split())


def plural_of(phrase: str, irregular: Mapping[str, str] = {}) -> str:
    """Of a phrase's last word: -y becomes -ies after a consonant, -es follows a hiss, else -s."""
    head, space, word = phrase.rpartition(" ")
    if word in irregular:
        plural = irregular[word]
    elif re.search(r"[^aeiou]y$", word):
        plural = word[:-1] + "ies"
    elif re.search(r"(s|x|z|ch|sh)$", word):
        plural = word + "es"
    else:
        plural = word + "s"
    return head + space + plural


class PhraseFinder:
    """Which of many phrases a text holds, the longest where several begin or overlap."""

    def __init__(self, phrases: Iterable[str]) -> None:
        longest_first = sorted({plain(phrase) for phrase in phrases}, key=lambda phrase: (-len(phrase), phrase))
        bodies = (re.escape(phrase).replace(r"\ ", r"[\s-]+") for phrase in longest_first)
        self._pattern = re.compile(rf"(?<![\w])(?:{'|'.join(bodies)})(?![\w])") if longest_first else None

    def find(self, text: str) -> list[str]:
        """In order; `text` as `plain` leaves it. A hyphen counts as a space."""
        if self._pattern is None:
            return []
        return [re.sub(r"[\s-]+", " ", found.group()) for found in self._pattern.finditer(text)]
