"""ShareGPT, as Vicuna's cleaned file has it: text-only conversations of a human and a model."""

from __future__ import annotations

from collections.abc import Iterator

from training.data.convert.base import Converter, Entry, Item, Role, Said, Settings, Sources
from training.data.convert.talk import exchanges_of
from training.data.rows import BadRow


def _read(sources: Sources, settings: Settings) -> Iterator[Said]:
    for entry in sources.rows("conversations"):
        yield entry if isinstance(entry, BadRow) else entry.read(_item)


def _item(entry: Entry) -> Item:
    system, exchanges = exchanges_of(entry, picture=False)
    return Item(entry.where, entry.name("id"), None, exchanges, system)


CONVERTER = Converter(
    "sharegpt",
    "ShareGPT (text only)",
    (Role("conversations", "ShareGPT_V3_unfiltered_cleaned_split.json"),),
    "",
    _read,
    text_only=True,
)
