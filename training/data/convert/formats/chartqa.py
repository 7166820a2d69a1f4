"""ChartQA: train_human.json and train_augmented.json, lists of questions about charts."""

from __future__ import annotations

from collections.abc import Iterator

from training.data.convert.base import Converter, Entry, Exchange, Item, Role, Said, Settings, Sources
from training.data.convert.prompts import SHORT_ANSWER


def _read(sources: Sources, settings: Settings) -> Iterator[Said]:
    for entry in sources.array("questions"):
        yield entry.read(_item)
    if "augmented" in sources:
        for entry in sources.array("augmented"):
            yield entry.read(_item)


def _item(entry: Entry) -> Item:
    image = entry.text("imgname")
    exchange = Exchange(entry.text("query"), entry.text("label"), SHORT_ANSWER)
    return Item(entry.where, image.rpartition(".")[0], image, (exchange,))


CONVERTER = Converter(
    "chartqa",
    "ChartQA",
    (Role("questions", "train_human.json"), Role("augmented", "train_augmented.json", optional=True)),
    "chartqa/train/png",
    _read,
    merges=True,
)
