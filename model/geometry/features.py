"""What of a canvas's feature map is kept: padding removed, the rest shrunk where there is a budget of tiles."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from model.geometry.canvas import Canvas, fit_within, paste_at

Rounding = Literal["truncate", "round7"]
UnpadRule = Literal["truncate", "round7", "covered"]

_SHRINK_ABOVE = 1.1  # a map that exceeds its budget by less than this factor a side is left as it is


class Box(NamedTuple):
    """A half-open rectangle of feature cells: rows top..bottom, columns left..right."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def rows(self) -> int:
        return self.bottom - self.top

    @property
    def columns(self) -> int:
        return self.right - self.left


def unpad_box(width: int, height: int, columns: int, rows: int, rounding: Rounding = "round7") -> Box:
    """The part of a rows x columns feature map that shows picture, by the rule of LLaVA-NeXT.

    Half of what is not picture, rounded down, is taken off each side. The original cuts the picture's size off to whole
    cells (`int(x)`); Hugging Face and vLLM round it to seven decimals before (`int(round(x, 7))`), which keeps one cell
    more where the exact value is whole and its floating-point value lies below. Images a thousand times as long as wide
    can lose all their cells; Hugging Face's classes do the same.
    """
    if width / height > columns / rows:
        kept = _whole(height * (columns / width), rounding)
        margin = (rows - kept) // 2
        return Box(margin, rows - margin, 0, columns)
    kept = _whole(width * (rows / height), rounding)
    margin = (columns - kept) // 2
    return Box(0, rows, margin, columns - margin)


def covered_box(width: int, height: int, canvas: Canvas, columns: int, rows: int) -> Box:
    """The cells on which any of the picture lies, by the rule of LLaVA-1.5-HD's paper.

    "Features corresponding exclusively to the paddings are discarded": a cell that holds both stays.
    """
    fitted = fit_within(width, height, canvas)
    left, top = paste_at(fitted, canvas)
    return Box(
        top * rows // canvas.height,
        -(-(top + fitted[1]) * rows // canvas.height),
        left * columns // canvas.width,
        -(-(left + fitted[0]) * columns // canvas.width),
    )


def shrink(rows: int, columns: int, grid: int, max_tiles: int | None) -> tuple[int, int]:
    """(rows, columns) after anyres_max_N: about N tiles' worth of cells, the map's shape kept.

    The reference divides with `//`, which at whole quotients is not `int(rows / times)`. A side never falls to nothing,
    where the reference's interpolation would fail.
    """
    if max_tiles is None:
        return rows, columns
    times = math.sqrt(rows * columns / (max_tiles * grid**2))
    if times <= _SHRINK_ABOVE:
        return rows, columns
    return max(1, int(rows // times)), max(1, int(columns // times))


def _whole(cells: float, rounding: Rounding) -> int:
    return int(round(cells, 7)) if rounding == "round7" else int(cells)
