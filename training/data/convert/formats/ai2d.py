"""AI2D: a folder of questions, one file for each diagram, and the list of diagrams kept for testing.

Questions that speak of parts by letter (`abcLabel`) belong to the drawing in which letters stand, in abc_images.
"""

from __future__ import annotations

import json
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
from training.data.convert.prompts import OPTION_LETTER, lettered
from training.data.errors import DataError
from training.data.rows import BadRow


def _read(sources: Sources, settings: Settings) -> Iterator[Said]:
    kept = _kept_for_testing(sources)
    for file in sources.folder("questions", ".json"):
        try:
            diagram = Entry(str(file), json.loads(file.read_bytes()))
            image, questions = diagram.text("imageName"), diagram.field("questions")
        except (OSError, ValueError) as error:  # FieldError is one
            yield BadRow(str(file), f"not a file of questions ({error})", None)
            continue
        sources.advance(file.stat().st_size)
        if image.rpartition(".")[0] in kept:
            yield Passed("kept for testing")
            continue
        if not isinstance(questions, dict):
            yield BadRow(str(file), "questions: expected an object", questions)
            continue
        for question, value in questions.items():
            entry = Entry(f"{file}: {question[:60]!r}", value)
            yield entry.read(partial(_item, image, question.strip()))


def _kept_for_testing(sources: Sources) -> frozenset[str]:
    if "test-ids" not in sources:
        return frozenset()
    try:
        return frozenset(sources.files["test-ids"].read_text("utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{sources.files['test-ids']}: cannot be read ({error})") from error


def _item(image: str, question: str, entry: Entry) -> Item:
    answers, right, by_letter = entry.texts("answerTexts"), entry.integer("correctAnswer"), entry.field("abcLabel")
    if not 0 <= right < len(answers):
        raise FieldError(f"correctAnswer: {right} of {len(answers)} answers")
    folder = "abc_images" if by_letter is True else "images"
    exchange = Exchange(f"{question}\n{lettered(answers)}", string.ascii_uppercase[right], OPTION_LETTER)
    stem = image.rpartition(".")[0]
    return Item(entry.where, f"{stem}-abc" if by_letter is True else stem, f"{folder}/{image}", (exchange,))


CONVERTER = Converter(
    "ai2d",
    "AI2D",
    (Role("questions", "questions/"), Role("test-ids", "ai2d_test_ids.csv", optional=True)),
    "ai2d",
    _read,
    merges=True,
    every=True,
)
