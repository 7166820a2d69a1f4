"""COCO captions: captions_train2014.json and its like. `images` name the files, `annotations` hold five captions each.

One caption of each picture, drawn by seed, behind a short question.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from training.data.convert.base import Converter, Entry, Exchange, FieldError, Item, Role, Said, Settings, Sources
from training.data.convert.prompts import BRIEF


def _read(sources: Sources, settings: Settings) -> Iterator[Said]:
    names = dict(image.need(_named) for image in sources.array("captions", "images"))
    for entry in sources.array("captions", "annotations"):
        yield entry.read(partial(_item, names, settings))


def _named(image: Entry) -> tuple[int, str]:
    return image.integer("id"), image.text("file_name")


def _item(names: dict[int, str], settings: Settings, entry: Entry) -> Item:
    image = entry.integer("image_id")
    if image not in names:
        raise FieldError(f"no image {image} in the file's images")
    question = settings.chance("ask", image).choice(BRIEF)
    return Item(
        entry.where, names[image].rpartition(".")[0], names[image], (Exchange(question, entry.text("caption")),)
    )


CONVERTER = Converter(
    "coco-captions",
    "COCO captions",
    (Role("captions", "captions_train2014.json"),),
    "coco/train2017",
    _read,
    merges=True,
    draw=1,
)
