"""GQA: train_balanced_questions.json, an object of questions by id. All of a picture become one conversation."""

from __future__ import annotations

from collections.abc import Iterator

from training.data.convert.base import Converter, Entry, Exchange, Item, Role, Said, Settings, Sources
from training.data.convert.prompts import SHORT_ANSWER


def _read(sources: Sources, settings: Settings) -> Iterator[Said]:
    for _, entry in sources.members("questions"):
        yield entry.read(_item)


def _item(entry: Entry) -> Item:
    image = entry.name("imageId")
    exchange = Exchange(entry.text("question"), entry.text("answer"), SHORT_ANSWER)
    return Item(entry.where, image, f"{image}.jpg", (exchange,))


CONVERTER = Converter(
    "gqa", "GQA", (Role("questions", "train_balanced_questions.json"),), "gqa/images", _read, merges=True
)
