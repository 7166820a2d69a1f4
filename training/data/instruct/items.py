"""What is known of each picture: captions and boxes, from COCO's files or from rows of JSON. Opens no picture.

COCO's own files (captions_*.json and instances_*.json, as published) are read with what is not needed, polygons above
all, skipped while parsing. Boxes are fractions of the picture's sides from here on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import msgspec

from training.data.errors import DataError


@dataclass(frozen=True)
class Box:
    """A thing and where it is: left, top, right, bottom, each between 0 and 1."""

    category: str
    edges: tuple[float, float, float, float]


@dataclass(frozen=True)
class Item:
    """One picture, in words."""

    id: str
    image: str
    captions: tuple[str, ...]
    boxes: tuple[Box, ...] = ()

    def context(self, *, boxes: bool) -> str:
        """What the model is told: a caption a line; then an empty line and the boxes, if there are any."""
        lines = list(self.captions)
        if boxes and self.boxes:
            lines.append("")
            lines += (f"{box.category}: [{', '.join(f'{edge:.3f}' for edge in box.edges)}]" for box in self.boxes)
        return "\n".join(lines)

    @property
    def digest(self) -> str:
        """Of what is known: an answer belongs to it."""
        return blake2b(self.context(boxes=True).encode(), digest_size=6).hexdigest()


@dataclass(frozen=True)
class Items:
    """All pictures, and what a person should know about how they were read."""

    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()


class _CocoImage(msgspec.Struct):
    id: int
    file_name: str
    width: int
    height: int


class _CocoCaption(msgspec.Struct):
    image_id: int
    caption: str


class _CocoInstance(msgspec.Struct):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # left, top, width, height in pixels


class _CocoCategory(msgspec.Struct):
    id: int
    name: str


class _CocoCaptions(msgspec.Struct):
    images: list[_CocoImage]
    annotations: list[_CocoCaption]


class _CocoInstances(msgspec.Struct):
    images: list[_CocoImage]
    annotations: list[_CocoInstance]
    categories: list[_CocoCategory]


class _RowBox(msgspec.Struct):
    category: str
    box: tuple[float, float, float, float]  # left, top, right, bottom


class _Row(msgspec.Struct):
    image: str
    captions: list[str]
    boxes: list[_RowBox] = []
    id: str | int | None = None
    width: float | None = None  # with height: boxes are in pixels of such a picture
    height: float | None = None


def read_coco(captions: Path, instances: Path | None) -> Items:
    """COCO's captions, and its boxes where `instances` is given. Raises DataError."""
    told = _decode(captions, _CocoCaptions)
    images = {image.id: image for image in told.images}
    texts: dict[int, list[str]] = {}
    for number, annotation in enumerate(told.annotations):
        if annotation.image_id not in images:
            raise DataError(
                f"{captions}: annotations[{number}].image_id: {annotation.image_id} is not among the images"
            )
        if text := " ".join(annotation.caption.split()):
            texts.setdefault(annotation.image_id, []).append(text)
    boxes = _coco_boxes(instances, images) if instances is not None else {}
    items = tuple(
        Item(str(image.id), image.file_name, tuple(texts[image.id]), tuple(boxes.get(image.id, ())))
        for image in told.images
        if image.id in texts
    )
    without = len(told.images) - len(items)
    notes = (f"{without} images of {captions} have no caption and are left out",) if without else ()
    return Items(_distinct(items, captions), notes)


def read_rows(file: Path) -> Items:
    """One `{image, captions, boxes}` a line, with `id`, `width` and `height` if wanted. Raises DataError."""
    return Items(_distinct(tuple(_rows(file)), file))


def _rows(file: Path) -> Iterator[Item]:
    decode = msgspec.json.Decoder(_Row).decode
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    where = f"{file}: line {number}"
                    try:
                        yield _item(decode(line), where)
                    except msgspec.MsgspecError as error:
                        raise DataError(f"{where}: {error}") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error


def _item(row: _Row, where: str) -> Item:
    captions = tuple(text for caption in row.captions if (text := " ".join(caption.split())))
    if not row.image or not captions:
        raise DataError(f"{where}: expected an image and at least one caption that is not empty")
    if (row.width is None) != (row.height is None):
        raise DataError(f"{where}: expected width and height together, or neither")
    sides = (row.width, row.height) if row.width is not None and row.height is not None else (1.0, 1.0)
    boxes = tuple(
        Box(box.category, _edges(box.box, sides, f"{where}: boxes[{at}]")) for at, box in enumerate(row.boxes)
    )
    return Item(str(row.image if row.id is None else row.id), row.image, captions, boxes)


def _edges(
    box: tuple[float, float, float, float], sides: tuple[float, float], where: str
) -> tuple[float, float, float, float]:
    width, height = sides
    if width <= 0 or height <= 0:
        raise DataError(f"{where}: the picture is {width:g}x{height:g}")
    left, top, right, bottom = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    if not (-0.01 <= left <= right <= 1.01 and -0.01 <= top <= bottom <= 1.01):
        unit = "fractions of the sides" if sides == (1.0, 1.0) else f"pixels of a {width:g}x{height:g} picture"
        raise DataError(f"{where}: expected left, top, right, bottom as {unit}, found {list(box)}")
    return (max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0))


def _coco_boxes(file: Path, images: Mapping[int, _CocoImage]) -> dict[int, list[Box]]:
    told = _decode(file, _CocoInstances)
    names = {category.id: category.name for category in told.categories}
    own = {image.id for image in told.images}
    boxes: dict[int, list[Box]] = {}
    for number, annotation in enumerate(told.annotations):
        where = f"{file}: annotations[{number}]"
        if annotation.category_id not in names:
            raise DataError(f"{where}.category_id: {annotation.category_id} is not among the categories")
        if annotation.image_id not in own:
            raise DataError(f"{where}.image_id: {annotation.image_id} is not among the images")
        if (image := images.get(annotation.image_id)) is None:
            continue  # a picture that has boxes but no captions file entry is none of ours
        left, top, width, height = annotation.bbox
        edges = _edges((left, top, left + width, top + height), (image.width, image.height), f"{where}.bbox")
        boxes.setdefault(annotation.image_id, []).append(Box(names[annotation.category_id], edges))
    return boxes


_T = TypeVar("_T")


def _decode(file: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except msgspec.MsgspecError as error:
        raise DataError(f"{file}: {error}") from error


def _distinct(items: tuple[Item, ...], file: Path) -> tuple[Item, ...]:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"{file}: two pictures have the id {item.id}")
        seen.add(item.id)
    if not items:
        raise DataError(f"{file}: no pictures with captions")
    return items
