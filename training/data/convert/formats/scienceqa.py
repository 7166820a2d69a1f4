"""ScienceQA: problems.json, an object of problems by id. The answer is the lecture, the solution and the letter."""

from __future__ import annotations

import string
from collections.abc import Iterator
from functools import partial

from training.data.convert.base import (
    Converter,
    Entry,
    Exchange,
    FieldError,
    Item,
    Passed,
    Role,
    Said,
    Settings,
    Sources,
)


def _read(sources: Sources, settings: Settings) -> Iterator[Said]:
    for key, entry in sources.members("problems"):
        yield entry.read(partial(_item, settings, key))


def _item(settings: Settings, key: str, entry: Entry) -> Item | Passed:
    if entry.text("split") != settings.split:
        return Passed("of another split")
    choices, right = entry.texts("choices"), entry.integer("answer")
    if not 0 <= right < len(choices):
        raise FieldError(f"answer: {right} of {len(choices)} choices")
    options = " ".join(f"({letter}) {text}" for letter, text in zip(string.ascii_uppercase, choices, strict=False))
    question = f"{entry.text('question')}\nContext: {entry.text('hint') or 'N/A'}\nOptions: {options}"
    told = (entry.text("lecture"), entry.text("solution"), f"The answer is {string.ascii_uppercase[right]}.")
    image = entry.field("image")
    if image is not None and not isinstance(image, str):
        raise FieldError(f"image: expected a file name or null, found {type(image).__name__}")
    path = f"{settings.split}/{key}/{image}" if image else None
    return Item(entry.where, key, path, (Exchange(question, " ".join(filter(None, told))),))


CONVERTER = Converter(
    "scienceqa", "ScienceQA", (Role("problems", "problems.json"),), "scienceqa/images", _read, text_only=True
)
