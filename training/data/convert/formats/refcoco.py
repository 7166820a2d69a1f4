"""RefCOCO, RefCOCO+ and RefCOCOg: refs(...).p or refs.json, with boxes and sizes from instances.json.

Each expression is asked for its box, or its box for the expression; all of a picture become conversations of at most
nine. The .p file is a pickle of plain lists and objects, and is read as such: one that names anything to be called is
refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from training.data.convert.base import (
    Converter,
    Entry,
    FieldError,
    Item,
    Passed,
    Role,
    Said,
    Settings,
    Sources,
)
from training.data.convert.regions import box_text, region_exchange
from training.data.errors import DataError
from training.data.rows import BadRow

_MAX_PICKLE = 512 << 20  # bytes; the largest published has under 100 MB

_Picture = tuple[int, int]  # width, height


def _read(sources: Sources, settings: Settings) -> Iterator[Said]:
    pictures = dict(image.need(_picture) for image in sources.array("instances", "images"))
    boxes = dict(annotation.need(_box) for annotation in sources.array("instances", "annotations"))
    file = sources.files["refs"]
    refs = _pickled(file) if file.suffix == ".p" else sources.array("refs")
    for ref in refs:
        try:
            sentences = ref.parts("sentences")
        except FieldError as error:
            yield BadRow(ref.where, str(error), ref.value)
            continue
        for said in sentences:
            yield said.read(partial(_item, pictures, boxes, settings, ref))


def _picture(image: Entry) -> tuple[int, _Picture]:
    return image.integer("id"), (image.integer("width"), image.integer("height"))


def _box(annotation: Entry) -> tuple[int, list[float]]:
    return annotation.integer("id"), annotation.numbers("bbox", 4)


def _item(
    pictures: dict[int, _Picture], boxes: dict[int, list[float]], settings: Settings, ref: Entry, said: Entry
) -> Item | Passed:
    if ref.text("split") != settings.split:
        return Passed("of another split")
    image, annotation = ref.integer("image_id"), ref.integer("ann_id")
    if image not in pictures or annotation not in boxes:
        raise FieldError(f"image {image} or annotation {annotation} is not in instances.json")
    width, height = pictures[image]
    box = box_text(boxes[annotation], width, height, settings.boxes)
    exchange = region_exchange(said.text("sent"), box, settings.chance("ref", said.name("sent_id")))
    return Item(said.where, f"{image:012d}", settings.coco_name(image), (exchange,))


class _DataOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and plain data names nothing")


def _pickled(file: Path) -> Iterator[Entry]:
    try:
        if file.stat().st_size > _MAX_PICKLE:
            raise DataError(f"{file}: more than {_MAX_PICKLE >> 20} MiB")
        with file.open("rb") as stream:
            refs: Any = _DataOnly(stream, encoding="utf-8").load()
    except (pickle.UnpicklingError, OSError, ValueError, EOFError, IndexError, KeyError, AttributeError) as error:
        raise DataError(f"{file}: not a readable file of references ({error})") from error
    if not isinstance(refs, list):
        raise DataError(f"{file}: expected a list of references, found {type(refs).__name__}")
    return (Entry(f"{file}: row {number}", ref) for number, ref in enumerate(refs, 1))


CONVERTER = Converter(
    "refcoco",
    "RefCOCO, RefCOCO+, RefCOCOg",
    (Role("refs", "refs(unc).p"), Role("instances", "instances.json")),
    "coco/train2017",
    _read,
    merges=True,
    turns=9,
)
