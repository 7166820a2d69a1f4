"""Visual Genome: region_descriptions.json, with sizes and folders from image_data.json.

Ten regions a picture, drawn by seed; each is asked for its description or for its box.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from training.data.convert.base import Converter, Entry, FieldError, Item, Role, Said, Settings, Sources
from training.data.convert.regions import box_text, region_exchange
from training.data.rows import BadRow

_Picture = tuple[str, int, int]  # file, width, height


def _read(sources: Sources, settings: Settings) -> Iterator[Said]:
    pictures = dict(entry.need(_picture) for entry in sources.array("images"))
    for entry in sources.array("regions"):
        try:
            regions, image = entry.parts("regions"), entry.integer("id")
        except FieldError as error:
            yield BadRow(entry.where, str(error), entry.value)
            continue
        for region in regions:
            yield region.read(partial(_item, pictures, settings, image))


def _picture(entry: Entry) -> tuple[int, _Picture]:
    """The last two parts of the address are the folder (VG_100K or VG_100K_2) and the file."""
    name = "/".join(entry.text("url").split("/")[-2:])
    return entry.integer("image_id"), (name, entry.integer("width"), entry.integer("height"))


def _item(pictures: dict[int, _Picture], settings: Settings, image: int, entry: Entry) -> Item:
    if image not in pictures:
        raise FieldError(f"no image {image} in image_data.json")
    name, width, height = pictures[image]
    corner = [float(entry.integer(side)) for side in ("x", "y", "width", "height")]
    box = box_text(corner, width, height, settings.boxes)
    exchange = region_exchange(entry.text("phrase"), box, settings.chance("vg", entry.name("region_id")))
    return Item(entry.where, str(image), name, (exchange,))


CONVERTER = Converter(
    "visual-genome",
    "Visual Genome regions",
    (Role("regions", "region_descriptions.json"), Role("images", "image_data.json")),
    "vg",
    _read,
    merges=True,
    draw=10,
)
