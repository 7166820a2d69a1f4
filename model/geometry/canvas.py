"""On which canvas an image is laid, and where: the pixels' side of the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Canvas(NamedTuple):
    """A resolution, in pixels, that an image may be laid on before it is cut into tiles."""

    width: int
    height: int


def choose_canvas(width: int, height: int, canvases: Sequence[Canvas]) -> Canvas:
    """The canvas that keeps most of the picture's pixels; of equals, the one that wastes least; of those, the first.

    The list's order counts, and so does which number of a pair is the width: the original reads (width, height),
    Hugging Face (height, width).
    """
    pixels = width * height
    best, best_effective, best_area = canvases[0], -1, 0
    for canvas in canvases:
        across, down = canvas
        scale = min(across / width, down / height)
        effective = min(int(width * scale) * int(height * scale), pixels)
        if effective > best_effective or (effective == best_effective and across * down < best_area):
            best, best_effective, best_area = canvas, effective, across * down
    return best


def fit_within(width: int, height: int, canvas: Canvas) -> tuple[int, int]:
    """The size (width, height) to resize to before centring on the canvas: one side exact, the other rounded up."""
    across, down = canvas.width / width, canvas.height / height
    if across < down:
        return canvas.width, min(math.ceil(height * across), canvas.height)
    return min(math.ceil(width * down), canvas.width), canvas.height


def paste_at(fitted: tuple[int, int], canvas: Canvas) -> tuple[int, int]:
    """(left, top) of a picture of the size `fitted`, centred on the canvas."""
    return (canvas.width - fitted[0]) // 2, (canvas.height - fitted[1]) // 2
