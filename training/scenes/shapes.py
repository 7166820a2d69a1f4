"""Shapes that we draw ourselves: coloured, flat, antialiased cut-outs."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

Point = tuple[float, float]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (250, 135, 15),
    "yellow": (250, 220, 30),
    "green": (35, 150, 55),
    "blue": (30, 75, 215),
    "purple": (130, 40, 165),
    "pink": (250, 130, 185),
    "brown": (125, 75, 35),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "white": (250, 250, 250),
}

_SUPERSAMPLING = 3


def _regular(corners: int, turn: float = -math.pi / 2) -> list[Point]:
    return [
        (0.5 + 0.5 * math.cos(turn + 2 * math.pi * i / corners), 0.5 + 0.5 * math.sin(turn + 2 * math.pi * i / corners))
        for i in range(corners)
    ]


def _star() -> list[Point]:
    points = []
    for i in range(10):
        radius = 0.5 if i % 2 == 0 else 0.21
        angle = -math.pi / 2 + math.pi * i / 5
        points.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
    return points


def _heart() -> list[Point]:
    points = []
    for i in range(64):
        t = 2 * math.pi * i / 64
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((0.5 + x / 33, 0.46 - y / 33))
    return points


def _ellipse(height: float) -> list[Point]:
    angles = [2 * math.pi * i / 72 for i in range(72)]
    return [(0.5 + 0.5 * math.cos(a), 0.5 + height / 2 * math.sin(a)) for a in angles]


_OUTLINES: dict[str, Callable[[], Sequence[Point]]] = {
    "circle": lambda: _ellipse(1.0),
    "oval": lambda: _ellipse(0.58),
    "square": lambda: [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)],
    "rectangle": lambda: [(0.0, 0.24), (1.0, 0.24), (1.0, 0.76), (0.0, 0.76)],
    "triangle": lambda: [(0.5, 0.05), (1.0, 0.92), (0.0, 0.92)],
    "diamond": lambda: [(0.5, 0.0), (0.86, 0.5), (0.5, 1.0), (0.14, 0.5)],
    "hexagon": lambda: _regular(6),
    "star": _star,
    "heart": _heart,
    "cross": lambda: [
        (0.34, 0.0), (0.66, 0.0), (0.66, 0.34), (1.0, 0.34), (1.0, 0.66), (0.66, 0.66),
        (0.66, 1.0), (0.34, 1.0), (0.34, 0.66), (0.0, 0.66), (0.0, 0.34), (0.34, 0.34),
    ],
}  # fmt: skip

SHAPES: tuple[str, ...] = tuple(_OUTLINES)


def draw_shape(shape: str, colour: str, size: int) -> Image.Image:
    """An RGBA cut-out of `shape`, cropped to its outline; the longer side is about `size` pixels."""
    big = size * _SUPERSAMPLING
    picture = Image.new("RGBA", (big, big), (*COLOURS[colour], 0))
    outline = [(x * (big - 1), y * (big - 1)) for x, y in _OUTLINES[shape]()]
    ImageDraw.Draw(picture).polygon(outline, fill=(*COLOURS[colour], 255))
    picture = picture.resize((size, size), Image.Resampling.BOX)
    return picture.crop(picture.getchannel("A").getbbox())


def colour_name(rgb: tuple[int, int, int]) -> str:
    """What a person would call a colour (0-255 per channel), in the words of COLOURS."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in rgb))
    if value < 0.2:
        return "black"
    if saturation < 0.14:
        return "white" if value > 0.85 else "gray"
    degrees = hue * 360
    if (degrees >= 300 and degrees < 345) or ((degrees < 20 or degrees >= 345) and saturation < 0.5 and value > 0.75):
        return "pink"
    if degrees < 45 and value < 0.68:
        return "brown" if degrees >= 15 or value < 0.45 else "red"
    bounds = ((15, "red"), (43, "orange"), (68, "yellow"), (165, "green"), (255, "blue"), (300, "purple"))
    return next((name for bound, name in bounds if degrees < bound), "red")
