"""What passes between the composer and its users: a picture, what is in it, and questions with answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from PIL import Image


class Layout(StrEnum):
    """What a scene is built as."""

    SINGLE = "single"  # one object
    PAIR = "pair"  # two objects side by side, asked what they are
    LEFT_RIGHT = "left_right"  # two objects side by side, asked where they are
    COUNTING = "counting"  # one to four of one kind
    SHAPES = "shapes"  # one or two drawn shapes with colours
    READING = "reading"  # one large word that training may show
    READING_UNSEEN = "reading_unseen"  # one large word that training never shows
    SMALL_PRINT = "small_print"  # one small word that training may show


class Family(StrEnum):
    """What a question asks for."""

    NAMING = "naming"
    CATEGORY = "category"
    YES_NO = "yes_no"  # is a kind, or a coloured shape, or a word there?
    CATEGORY_CHECK = "category_check"  # yes or no: is it an animal?
    LEFT_RIGHT = "left_right"
    COUNTING = "counting"
    SHAPE = "shape"
    COLOUR = "colour"
    READING = "reading"
    SPELLING = "spelling"
    CAPTION = "caption"
    DESCRIPTION = "description"


@dataclass(frozen=True)
class Placed:
    """A kind, a shape or a word in a picture, and the box of its ink in pixels (left, top, right, bottom).

    `edges` of a word: the x at which each letter begins and the last one ends.
    """

    name: str
    box: tuple[int, int, int, int]
    colour: str | None = None
    edges: tuple[float, ...] = ()

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Turn:
    """A question, the answer that training uses, and the bare truth that scoring compares with.

    `form` and `choice` serve the constant-answer baseline: among questions of one form, `choice` is what a blind
    guesser would have to guess (for "which is on the left, the cat or the car?" that is "first" or "second").
    """

    family: Family
    question: str
    answer: str
    truth: str
    form: str = ""
    choice: str = ""


@dataclass(frozen=True)
class Scene:
    """A composed picture and everything that is true of it by construction."""

    picture: Image.Image
    layout: Layout
    background: str  # identifies the background's source
    objects: tuple[Placed, ...]
    turns: tuple[Turn, ...]
    caption: Turn
