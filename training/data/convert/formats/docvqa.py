"""DocVQA: train_v1.0.json, whose `data` holds questions about pages. The first of the accepted answers counts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from training.data.convert.base import Converter, Entry, Exchange, Item, Passed, Role, Said, Settings, Sources
from training.data.convert.prompts import SHORT_ANSWER


def _read(sources: Sources, settings: Settings) -> Iterator[Said]:
    for entry in sources.array("questions", "data"):
        yield entry.read(partial(_item, settings))


def _item(settings: Settings, entry: Entry) -> Item | Passed:
    if entry.text("data_split") != settings.split:
        return Passed("of another split")
    image = entry.text("image")
    exchange = Exchange(entry.text("question"), entry.texts("answers")[0], SHORT_ANSWER)
    return Item(entry.where, image.rpartition("/")[2].rpartition(".")[0], image, (exchange,))


CONVERTER = Converter("docvqa", "DocVQA", (Role("questions", "train_v1.0.json"),), "docvqa", _read, merges=True)
