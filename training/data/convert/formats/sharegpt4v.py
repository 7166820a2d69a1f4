"""ShareGPT4V and whatever else is published in LLaVA's own format: the picture's place moves to the front."""

from __future__ import annotations

from collections.abc import Iterator

from training.data.convert.base import Converter, Entry, Item, Role, Said, Settings, Sources
from training.data.convert.talk import exchanges_of
from training.data.rows import BadRow


def _read(sources: Sources, settings: Settings) -> Iterator[Said]:
    for entry in sources.rows("conversations"):
        yield entry if isinstance(entry, BadRow) else entry.read(_item)


def _item(entry: Entry) -> Item:
    image = entry.text("image") if isinstance(entry.value, dict) and entry.value.get("image") is not None else None
    system, exchanges = exchanges_of(entry, picture=image is not None)
    return Item(entry.where, entry.name("id"), image, exchanges, system)


CONVERTER = Converter(
    "sharegpt4v",
    "ShareGPT4V, and any file in LLaVA's format",
    (Role("conversations", "sharegpt4v_instruct_gpt4-vision_cap100k.json"),),
    "",
    _read,
    text_only=True,
)
