"""Whether an answer gives away that it was written from captions and boxes instead of from the picture.

The rule: no word or phrase of leaks.txt, singular or plural, unless the item's own captions or categories use it; and
no coordinates, which are decimals of three places or lists of two or more decimals in brackets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from training.data.instruct.items import Item
from training.data.instruct.wording import PhraseFinder, plain, plural_of

_COORDINATES = re.compile(r"(?<![\d.])[01]?\.\d{3}(?!\d)|[\[(]\s*\d?\.\d+\s*(?:,\s*\d?\.\d+\s*)+[\])]")


class LeakCheck:
    def __init__(self, phrases: Iterable[str]) -> None:
        self._singular = {form: phrase for phrase in map(plain, phrases) for form in (phrase, plural_of(phrase))}
        self._finder = PhraseFinder(self._singular)

    def leak(self, item: Item, text: str) -> str | None:
        """The first thing that must not be said; None: nothing is."""
        if found := _COORDINATES.search(text):
            return found.group()
        leaks = [self._singular[form] for form in self._finder.find(plain(text))]
        if not leaks:
            return None
        known = plain(" ".join((*item.captions, *(box.category for box in item.boxes))))
        allowed = {self._singular[form] for form in self._finder.find(known)}
        return next((leak for leak in leaks if leak not in allowed), None)
