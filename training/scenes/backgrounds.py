"""Backgrounds: plain colours, gradients, noise textures and photos. Train and test never share one.

Photos belong to one split by list. Colours belong to one split by their place in a grid: a colour is three levels, and
the parity of their sum says which split may use it; gradients and textures are made of such colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from training.scenes.assets import PHOTO_LIST, Photo, require
from training.scenes.shapes import colour_name
from training.scenes.wording import with_article

RGB = tuple[int, int, int]
SPLITS = ("train", "test")
LEVELS = 12  # levels per channel of the colour grid

_PHOTO_SIDE = 720  # photos are kept at this longer side


@dataclass(frozen=True)
class Background:
    """A painted background. `name` identifies its source, `words` describe it for captions."""

    picture: Image.Image
    name: str
    words: str


def split_of_colour(colour: RGB) -> str:
    """The one split that may use `colour`, which must lie on the grid."""
    return SPLITS[sum(round(channel * (LEVELS - 1) / 255) for channel in colour) % 2]


def random_colour(rng: Random, split: str, *, lightest: int = 255, darkest: int = 0) -> RGB:
    """A grid colour of `split` whose mean brightness lies within [darkest, lightest]."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    while True:
        levels = [rng.randrange(LEVELS) for _ in range(3)]
        colour = tuple(round(level * 255 / (LEVELS - 1)) for level in levels)
        if sum(levels) % 2 == SPLITS.index(split) and darkest <= sum(colour) / 3 <= lightest:
            return colour  # type: ignore[return-value]


def plain(rng: Random, split: str, size: tuple[int, int], *, darkest: int = 60, lightest: int = 255) -> Background:
    colour = random_colour(rng, split, darkest=darkest, lightest=lightest)
    words = f"a plain {colour_name(colour)} background"
    return Background(Image.new("RGB", size, colour), f"plain:{colour}", words)


def gradient(rng: Random, split: str, size: tuple[int, int], *, darkest: int = 60, lightest: int = 255) -> Background:
    first, second = (random_colour(rng, split, darkest=darkest, lightest=lightest) for _ in range(2))
    width, height = size
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    blend = ((x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2) + 1) / 2
    pixels = np.outer(1 - blend, first) + np.outer(blend, second)
    picture = Image.fromarray(pixels.reshape(height, width, 3).clip(0, 255).astype(np.uint8))
    names = dict.fromkeys((colour_name(first), colour_name(second)))
    return Background(picture, f"gradient:{first}:{second}", f"{with_article(' and '.join(names))} gradient")


def texture(rng: Random, split: str, size: tuple[int, int]) -> Background:
    colour = random_colour(rng, split, darkest=90, lightest=230)
    cells = rng.choice((4, 8, 16, 40))
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0, 1, (cells, cells, 1))
    pixels = np.array(colour, dtype=float) + noise * rng.uniform(12, 38)
    small = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    picture = small.resize(size, Image.Resampling.BICUBIC)
    return Background(picture, f"texture:{colour}", f"{with_article(colour_name(colour))} texture")


@lru_cache(maxsize=len(PHOTO_LIST))
def _photo_pixels(path: Path) -> Image.Image:
    picture = Image.open(require(path))
    picture.draft("RGB", (_PHOTO_SIDE, _PHOTO_SIDE))
    rgb = picture.convert("RGB")
    rgb.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE), Image.Resampling.LANCZOS)
    return rgb


def photos(split: str) -> tuple[Photo, ...]:
    return tuple(photo for photo in PHOTO_LIST if photo.split == split)


def photo(rng: Random, split: str, size: tuple[int, int]) -> Background:
    """A random crop of one of the split's photos, of the proportions of `size`."""
    choice = rng.choice(photos(split))
    pixels = _photo_pixels(choice.path)
    fit = min(pixels.width / size[0], pixels.height / size[1])
    scale = fit * rng.uniform(0.5, 1.0)
    width, height = size[0] * scale, size[1] * scale
    left, top = rng.uniform(0, pixels.width - width), rng.uniform(0, pixels.height - height)
    picture = pixels.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Background(picture, f"photo:{choice.name}", f"a photo of {choice.words}")


def any_background(rng: Random, split: str, size: tuple[int, int], *, photo_share: float = 0.4) -> Background:
    """A background of random sort; `photo_share` 0 needs no package."""
    if rng.random() < photo_share:
        return photo(rng, split, size)
    return rng.choice((plain, gradient, texture))(rng, split, size)
