"""Printing one word into a picture, large or small, in strong contrast."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFont

from training.scenes.assets import FONT_LIST, require

RGB = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels

_INKS: tuple[RGB, ...] = ((0, 0, 0), (120, 0, 0), (0, 0, 120), (0, 70, 0), (70, 0, 90))
_PALE_INKS: tuple[RGB, ...] = ((255, 255, 255), (255, 255, 140), (180, 255, 255), (200, 255, 190))


@lru_cache(maxsize=1024)
def _font(path: Path | None, size: int) -> Font:
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)


def fonts(*, installed: bool) -> tuple[Path | None, ...]:
    """The fonts to print with; None is Pillow's built-in font, which needs no package."""
    return tuple(require(path) for path in FONT_LIST) if installed else (None,)


def ink_for(rng: Random, brightness: float) -> RGB:
    """An ink that stands out from a background of the given mean brightness (0-255)."""
    return rng.choice(_INKS if brightness >= 128 else _PALE_INKS)


def font_for_width(path: Path | None, word: str, width: int, height: int) -> Font:
    """The largest size of a font at which `word` fits within width x height pixels."""
    left, top, right, bottom = _font(path, 100).getbbox(word)
    size = int(100 * min(width / (right - left), height / (bottom - top)))
    return _font(path, max(6, size))


def font_for_height(path: Path | None, height: int) -> Font:
    """The size of a font at which tall letters ("l", "h") are `height` pixels high."""
    _, top, _, bottom = _font(path, 100).getbbox("lh")
    return _font(path, max(6, round(100 * height / (bottom - top))))


def print_word(
    picture: Image.Image,
    word: str,
    font: Font,
    ink: RGB,
    rng: Random,
    region: Box,
) -> tuple[Box, tuple[float, ...]]:
    """Print `word` at a random place inside `region`.

    Returns the box that its ink covers, and the x at which each letter begins and the last one ends.
    """
    left, top, right, bottom = font.getbbox(word)
    width, height = right - left, bottom - top
    free_x, free_y = region[2] - region[0] - width, region[3] - region[1] - height
    if free_x < 0 or free_y < 0:
        raise ValueError(f"the word {word!r} ({width}x{height} pixels) does not fit its region")
    x = region[0] + rng.randint(0, int(free_x))
    y = region[1] + rng.randint(0, int(free_y))
    ImageDraw.Draw(picture).text((x - left, y - top), word, font=font, fill=ink)
    edges = tuple(round(x - left + font.getlength(word[:count]), 1) for count in range(len(word) + 1))
    return (x, y, round(x + width), round(y + height)), edges
