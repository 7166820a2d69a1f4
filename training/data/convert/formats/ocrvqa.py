"""OCR-VQA: dataset.json, an object of book covers by id, each with its questions and answers.

Pictures are taken to be saved as ID.jpg, as LLaVA-1.5's instructions have it. Splits are 1 (train), 2 (val), 3 (test).
"""

from __future__ import annotations

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
from training.data.convert.prompts import SHORT_ANSWER

_SPLITS = {1: "train", 2: "val", 3: "test"}


def _read(sources: Sources, settings: Settings) -> Iterator[Said]:
    for key, entry in sources.members("dataset"):
        yield entry.read(partial(_item, settings, key))


def _item(settings: Settings, key: str, entry: Entry) -> Item | Passed:
    if _SPLITS.get(entry.integer("split")) != settings.split:
        return Passed("of another split")
    questions, answers = entry.texts("questions"), entry.texts("answers")
    if len(questions) != len(answers):
        raise FieldError(f"{len(questions)} questions, {len(answers)} answers")
    exchanges = tuple(Exchange(ask, answer, SHORT_ANSWER) for ask, answer in zip(questions, answers, strict=True))
    return Item(entry.where, key, f"{key}.jpg", exchanges)


CONVERTER = Converter("ocrvqa", "OCR-VQA", (Role("dataset", "dataset.json"),), "ocr_vqa/images", _read)
