"""SynDog: metadata.jsonl, a line for each synthetic page. Its text is to be read out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

from training.data.convert.base import Converter, Entry, Exchange, FieldError, Item, Role, Said, Settings, Sources
from training.data.convert.prompts import READ_ALL
from training.data.rows import BadRow


def _read(sources: Sources, settings: Settings) -> Iterator[Said]:
    for entry in sources.rows("metadata"):
        yield entry if isinstance(entry, BadRow) else entry.read(partial(_item, settings))


def _item(settings: Settings, entry: Entry) -> Item:
    image = entry.text("file_name")
    try:
        truth = Entry(entry.where, json.loads(entry.text("ground_truth")))
    except ValueError as error:
        raise FieldError(f"ground_truth: not valid JSON ({error})") from error
    text = Entry(entry.where, truth.field("gt_parse")).text("text_sequence")
    question = settings.chance("read", image).choice(READ_ALL)
    return Item(entry.where, image.rpartition(".")[0], image, (Exchange(question, text),))


CONVERTER = Converter("syndog", "SynDog", (Role("metadata", "metadata.jsonl"),), "synthdog", _read)
