"""Pictures become tiles: the same bytes as the long way, and never more memory than the picture and its tiles need."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.checkpoint import load_checkpoint
from model.generations import GENERATIONS, LLAVA_1_5, LLAVA_NEXT_2024_05
from model.geometry import ImageGeometry
from model.images import ImagePreprocessor, read_preprocessor
from model.tiny import make_tiny_checkpoint
from model.views import base_view

GROUND = (122, 116, 104)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width + height).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("size", [(3, 2), (1, 1), (300, 200), (90, 401), (5, 337), (336, 20), (7, 2500), (1800, 31)])
@pytest.mark.parametrize("tile", [56, 336])
def test_padding_makes_the_bytes_of_a_whole_square(size: tuple[int, int], tile: int) -> None:
    picture, side = noise(*size), max(size)
    square = Image.new("RGB", (side, side), GROUND)
    square.paste(picture, ((side - size[0]) // 2, (side - size[1]) // 2))
    expected = square.resize((tile, tile), Image.Resampling.BICUBIC)
    assert base_view(picture, "pad", tile, GROUND).tobytes() == expected.tobytes()


def test_of_a_very_long_picture_values_differ_by_no_more_than_one_step() -> None:
    picture = noise(60, 4100)
    square = Image.new("RGB", (4100, 4100), GROUND)
    square.paste(picture, (2020, 0))
    expected = np.asarray(square.resize((56, 56), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(np.asarray(base_view(picture, "pad", 56, GROUND)) - expected)
    print(f"at most {difference.max()}, in {(difference > 0).mean():.2%} of the values")
    assert difference.max() <= 1


@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 9000)])
def test_a_line_of_pixels_costs_no_more_memory_than_a_picture(how: str, size: tuple[int, int]) -> None:
    view = base_view(Image.new("RGB", size, GROUND), how, 56, GROUND)  # type: ignore[arg-type]
    assert view.size == (56, 56)
    assert view.getextrema() == tuple((value, value) for value in GROUND), "one colour stays one colour"


def test_the_middle_is_what_a_crop_keeps() -> None:
    line = Image.new("RGB", (9000, 3), "black")
    line.paste((255, 255, 255), (4400, 0, 4600, 3))
    assert base_view(line, "crop", 56, GROUND).getextrema() == ((255, 255),) * 3


def test_of_several_images_each_is_named_apart_from_the_same_image_alone(tmp_path: Path) -> None:
    path = make_tiny_checkpoint(tmp_path, generation=LLAVA_NEXT_2024_05)
    preprocessor = load_checkpoint(path, dtype=torch.float32).preprocessor
    alone, among = (preprocessor.prepare_rgb(noise(300, 200), "name", images=images) for images in (1, 2))
    assert alone.digest == "name" != among.digest
    assert (alone.pixels.shape[0], among.pixels.shape[0]) == (alone.layout.tiles, 1)


@pytest.mark.parametrize("name", GENERATIONS)
def test_the_base_view_alone_is_flat_and_one_tile_in_every_generation(name: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(make_tiny_checkpoint(tmp_path, generation=name), dtype=torch.float32)
    view = checkpoint.preprocessor.base_view(noise(300, 200), "name")
    assert (view.layout.tokens, view.layout.newline, view.pixels.shape[0]) == (16, False, 1)
    assert [features.shape for features in checkpoint.model.encode_images([view])] == [(16, 64)]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"do_pad": True}, "pad"),
        ({"do_pad": False, "do_center_crop": True}, "crop"),
        ({"do_center_crop": True}, "pad"),  # a stock CLIP processor: the checkpoint's own section counts
        ({"do_pad": False, "do_center_crop": False}, "stretch"),
    ],
)
def test_the_preprocessors_word_on_padding_counts(told: dict[str, bool], expected: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    assert read_preprocessor(tmp_path, LLAVA_1_5.config).geometry.base == expected


def test_values_are_rounded_as_numpy_does_it_pixel_by_pixel() -> None:
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    picture = noise(56, 56)
    made = ImagePreprocessor(ImageGeometry(56, 4), mean, std).prepare_rgb(picture, "").pixels[0]
    scaled = (np.asarray(picture).astype(np.float64) * (1 / 255)).astype(np.float32)
    expected = ((scaled - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)
    assert np.array_equal(made.numpy(), expected)
