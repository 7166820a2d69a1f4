"""TextCaps: TextCaps_0.1_train.json, whose `data` has five captions a picture; one is drawn by seed.

With TextVQA's Rosetta file the words that were recognised stand in the question, as in LLaVA-1.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from training.data.convert.base import Converter, Entry, Exchange, Item, Role, Said, Settings, Sources
from training.data.convert.prompts import ONE_SENTENCE


def _read(sources: Sources, settings: Settings) -> Iterator[Said]:
    words = dict(entry.need(_words) for entry in sources.array("ocr", "data")) if "ocr" in sources else {}
    for entry in sources.array("captions", "data"):
        yield entry.read(partial(_item, words))


def _words(entry: Entry) -> tuple[str, str]:
    found = [word.value for word in entry.parts("ocr_tokens") if isinstance(word.value, str)]
    return entry.name("image_id"), ", ".join(found)


def _item(words: dict[str, str], entry: Entry) -> Item:
    image = entry.name("image_id")
    seen = f"\nReference OCR token: {words[image]}" if words.get(image) else ""
    return Item(entry.where, image, f"{image}.jpg", (Exchange(ONE_SENTENCE + seen, entry.text("caption_str")),))


CONVERTER = Converter(
    "textcaps",
    "TextCaps",
    (
        Role("captions", "TextCaps_0.1_train.json"),
        Role("ocr", "TextVQA_Rosetta_OCR_v0.2_train.json", optional=True),
    ),
    "textvqa/train_images",
    _read,
    merges=True,
    draw=1,
)
