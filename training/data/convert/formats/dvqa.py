"""DVQA: train_qa.json, a list of questions about bar charts."""

from __future__ import annotations

from collections.abc import Iterator

from training.data.convert.base import Converter, Entry, Exchange, Item, Role, Said, Settings, Sources
from training.data.convert.prompts import SHORT_ANSWER


def _read(sources: Sources, settings: Settings) -> Iterator[Said]:
    for entry in sources.array("questions"):
        yield entry.read(_item)


def _item(entry: Entry) -> Item:
    image = entry.text("image")
    exchange = Exchange(entry.text("question"), entry.text("answer"), SHORT_ANSWER)
    return Item(entry.where, image.rpartition(".")[0], image, (exchange,))


CONVERTER = Converter("dvqa", "DVQA", (Role("questions", "train_qa.json"),), "dvqa/images", _read, merges=True)
