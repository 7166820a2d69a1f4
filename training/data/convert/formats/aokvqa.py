"""A-OKVQA: aokvqa_v1p0_train.json, a list of questions with four choices each.

Each picture's questions are asked once per choice, the choices rotated by one each time, so that every letter comes up
as the right one: 16,540 pictures of four choices are the 66,160 conversations of LLaVA-1.5.
"""

from __future__ import annotations

import string
from collections.abc import Iterator

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
from training.data.rows import BadRow


def _read(sources: Sources, settings: Settings) -> Iterator[Said]:
    for entry in sources.array("questions"):
        try:
            yield from _items(entry, settings)
        except FieldError as error:
            yield BadRow(entry.where, str(error), entry.value)


def _items(entry: Entry, settings: Settings) -> list[Item | Passed]:
    if entry.text("split") != settings.split:
        return [Passed("of another split")]
    question, choices, right = entry.text("question"), entry.texts("choices"), entry.integer("correct_choice_idx")
    image = entry.integer("image_id")
    if not 0 <= right < len(choices):
        raise FieldError(f"correct_choice_idx: {right} of {len(choices)} choices")
    items: list[Item | Passed] = []
    for turn in range(len(choices)):
        options = choices[turn:] + choices[:turn]
        letter = string.ascii_uppercase[(right - turn) % len(choices)]
        exchange = Exchange(f"{question}\n{lettered(options)}", letter, OPTION_LETTER)
        items.append(Item(entry.where, f"{image:012d}-{turn + 1}", settings.coco_name(image), (exchange,)))
    return items


CONVERTER = Converter(
    "aokvqa",
    "A-OKVQA",
    (Role("questions", "aokvqa_v1p0_train.json"),),
    "coco/train2017",
    _read,
    merges=True,
    every=True,
)
