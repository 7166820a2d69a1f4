"""COCO's published files, and rows of our own, as pictures in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.data.errors import DataError
from training.data.instruct.items import read_coco, read_rows

IMAGE = {
    "license": 5,
    "file_name": "COCO_train2014_000000057870.jpg",
    "coco_url": "http://images.cocodataset.org/train2014/COCO_train2014_000000057870.jpg",
    "height": 480,
    "width": 640,
    "date_captured": "2013-11-14 16:28:13",
    "flickr_url": "http://farm4.staticflickr.com/3153/2970773875_164f0c0b83_z.jpg",
    "id": 57870,
}
INSTANCE = {
    "segmentation": [[312.29, 562.89, 402.25, 511.49]],
    "area": 54652.9556,
    "iscrowd": 0,
    "image_id": 57870,
    "bbox": [64.0, 48.0, 320.0, 240.0],
    "category_id": 67,
    "id": 480023,
}
TABLE = {"supercategory": "furniture", "id": 67, "name": "dining table"}


def coco(folder: Path, *, images: list, captions: list, instances: list) -> tuple[Path, Path]:
    files = folder / "captions_train2014.json", folder / "instances_train2014.json"
    both = {"info": {"year": 2014}, "images": images, "licenses": [{"id": 1, "name": "x", "url": "y"}]}
    files[0].write_text(json.dumps({**both, "annotations": captions}), "utf-8")
    files[1].write_text(json.dumps({**both, "annotations": instances, "categories": [TABLE]}), "utf-8")
    return files


def test_cocos_files_are_read_as_published(tmp_path: Path) -> None:
    caption = {"image_id": 57870, "id": 787980, "caption": "A restaurant has modern\nwooden tables and chairs. "}
    other = {**IMAGE, "id": 5, "file_name": "other.jpg"}
    read = read_coco(*coco(tmp_path, images=[IMAGE, other], captions=[caption], instances=[INSTANCE]))
    (item,) = read.items
    assert (item.id, item.image) == ("57870", "COCO_train2014_000000057870.jpg")
    assert item.context(boxes=False) == "A restaurant has modern wooden tables and chairs."
    assert item.context(boxes=True).splitlines()[1:] == ["", "dining table: [0.100, 0.100, 0.600, 0.600]"]
    assert "1 images" in read.notes[0]


@pytest.mark.parametrize(
    ("captions", "instances", "message"),
    [
        ([{"image_id": 1, "caption": "x"}], [], r"captions_train2014\.json: annotations\[0\]\.image_id: 1 "),
        ([{"image_id": 57870}], [], "caption"),
        ([{"image_id": 57870, "caption": "x"}], [{**INSTANCE, "category_id": 1}], r"annotations\[0\]\.category_id: 1"),
        ([{"image_id": 57870, "caption": "x"}], [{**INSTANCE, "bbox": [600, 0, 200, 9]}], r"bbox.*640x480"),
        ([], [], "no pictures"),
    ],
)
def test_what_does_not_fit_is_named(captions: list, instances: list, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_coco(*coco(tmp_path, images=[IMAGE], captions=captions, instances=instances))


def test_rows_give_boxes_as_fractions_or_in_pixels_of_a_size(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    box = {"category": "cat", "box": [10, 20, 50, 100]}
    rows = [
        {"image": "a.jpg", "captions": ["A cat."], "boxes": [box], "width": 100, "height": 200, "id": 7},
        {"image": "b.jpg", "captions": ["B."], "boxes": [{"category": "dog", "box": [0.1, 0.2, 0.5, 1.0]}]},
        {"image": "c.jpg", "captions": ["C."]},
    ]
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    first, second, third = read_rows(file).items
    assert first.id == "7" and first.boxes[0].edges == (0.1, 0.1, 0.5, 0.5)
    assert second.id == "b.jpg" and second.boxes[0].edges == (0.1, 0.2, 0.5, 1.0)
    assert third.context(boxes=True) == "C."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"image": "a.jpg", "captions": []}', "line 2: expected an image and at least one caption"),
        ('{"image": "a.jpg"}', "line 2: .*captions"),
        ("{", "line 2"),
        ('{"image": "a.jpg", "captions": ["x"], "boxes": [{"category": "c", "box": [1, 2, 30, 4]}]}', "fractions"),
        ('{"image": "a.jpg", "captions": ["x"], "width": 5}', "width and height"),
        ('{"image": "first.jpg", "captions": ["x"]}', "two pictures have the id first.jpg"),
    ],
)
def test_a_row_that_does_not_fit_is_named_by_file_and_line(row: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('{"image": "first.jpg", "captions": ["x"]}\n' + row, "utf-8")
    with pytest.raises(DataError, match=message):
        read_rows(file)
