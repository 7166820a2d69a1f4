"""How many scenes of each layout a data set holds, and what a scene's conversation is for.

Layouts are dealt from shuffled decks, so every full deck holds the exact proportions, and each scene knows how many of
its layout came before it: answers such as yes and no alternate over that count and come out exactly balanced.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from random import Random
from typing import Literal

from training.scenes.scene import Layout


@dataclass(frozen=True)
class Proportions:
    """Scenes of each layout in a deck (their sum is the deck's size)."""

    single: int = 64
    pair: int = 26
    left_right: int = 30
    counting: int = 24
    shapes: int = 20
    reading: int = 24
    small_print: int = 12

    def __post_init__(self) -> None:
        if any(getattr(self, field.name) < 0 for field in fields(self)) or self.total == 0:
            raise ValueError("proportions must not be negative, and not all zero")

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Mix:
    """A recipe for a data set: `caption` conversations have one caption turn, `instruct` ones several questions."""

    purpose: Literal["caption", "instruct"]
    proportions: Proportions = Proportions()
    most_frequent_words: int | None = None  # print only this many of the most frequent words


_WORDS = 600  # what the demo is to read: fewer words come up often enough to be learned

MIXES: dict[str, Mix] = {
    "caption": Mix("caption"),
    # For the base view alone, in which small print cannot be read.
    "instruct": Mix("instruct", Proportions(counting=36, shapes=16, reading=20, small_print=0), _WORDS),
    # For the base view with AnyRes tiles.
    "anyres": Mix("instruct", Proportions(single=54, counting=30, shapes=14, reading=40, small_print=40), _WORDS),
    # For the vision tower, which has letters to learn besides things.
    "see": Mix(
        "instruct", Proportions(single=50, pair=20, left_right=10, counting=20, shapes=10, reading=60, small_print=30)
    ),
}


@dataclass(frozen=True)
class Slot:
    """A scene's place in the deck: its layout, and how many scenes of that layout came before it in the data set."""

    layout: Layout
    ordinal: int


def slot(seed: int, split: str, index: int, proportions: Proportions) -> Slot:
    """The slot of scene `index`: a function of its arguments alone."""
    block, place = divmod(index, proportions.total)
    return _deck(seed, split, block, proportions)[place]


@lru_cache(maxsize=8)
def _deck(seed: int, split: str, block: int, proportions: Proportions) -> tuple[Slot, ...]:
    slots = []
    for field in fields(proportions):
        layout, count = Layout(field.name), getattr(proportions, field.name)
        for ordinal in range(block * count, (block + 1) * count):
            # Half of the words that a test set prints large are unseen ones, reported apart.
            unseen = layout is Layout.READING and split == "test" and ordinal % 2 == 1
            slots.append(Slot(Layout.READING_UNSEEN, ordinal // 2) if unseen else Slot(layout, ordinal))
    Random(f"deck/{seed}/{split}/{block}").shuffle(slots)
    return tuple(slots)
