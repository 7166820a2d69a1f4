"""Image arithmetic: from (width, height) alone to canvas, tiles, unpadding box and token count.

Pure Python, exact and fast, so that the controller counts with it what the worker will compute. Facts: the LLaVA-NeXT
reference and Hugging Face's `LlavaNextForConditionalGeneration`. Canvases are (width, height) here; Hugging Face lists
them as (height, width), which the reader of config.json turns round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

ImageMode = Literal["crop", "pad", "hd", "anyres"]
Rounding = Literal["truncate", "round7"]
SeveralImages = Literal["tiles", "base"]


class Canvas(NamedTuple):
    """A resolution, in pixels, that AnyRes may lay an image on."""

    width: int
    height: int


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


@dataclass(frozen=True)
class ImageLayout:
    """How one image is laid out: the tiles to encode and the tokens that come of them.

    `tiles_across` and `tiles_down` are 0 when only the base view is encoded. `unpad` is the part of the
    (tiles_down * grid) x (tiles_across * grid) feature map that holds picture and not padding; a newline token ends
    each of its rows.
    """

    width: int
    height: int
    canvas: Canvas | None
    tiles_across: int
    tiles_down: int
    unpad: Box | None
    tokens: int

    @property
    def tiles(self) -> int:
        """Tiles to encode, the base view included."""
        return 1 + self.tiles_across * self.tiles_down


@dataclass(frozen=True)
class ImageGeometry:
    """The image side of a checkpoint. `grid` is patches a side of a tile; no canvases means one view per image."""

    tile: int
    grid: int
    canvases: tuple[Canvas, ...] = ()
    extra_tokens: int = 0  # 1 where the CLS token is kept

    def layout(self, width: int, height: int) -> ImageLayout:
        """Lays out an image of `width` x `height` pixels. Raises ValueError for sizes below one pixel."""
        if width < 1 or height < 1:
            raise ValueError(f"an image needs at least one pixel a side, got {width}x{height}")
        return _layout(self, width, height)

    @property
    def max_tokens(self) -> int:
        """The most tokens that any image can cost."""
        base = self.grid * self.grid + self.extra_tokens
        return max(
            (base + c.height // self.tile * self.grid * (c.width // self.tile * self.grid + 1) for c in self.canvases),
            default=base,
        )


@lru_cache(maxsize=4096)
def _layout(geometry: ImageGeometry, width: int, height: int) -> ImageLayout:
    base = geometry.grid * geometry.grid + geometry.extra_tokens
    if not geometry.canvases:
        return ImageLayout(width, height, None, 0, 0, None, base)
    canvas = choose_canvas(width, height, geometry.canvases)
    across, down = canvas.width // geometry.tile, canvas.height // geometry.tile
    box = unpad_box(width, height, across * geometry.grid, down * geometry.grid)
    return ImageLayout(width, height, canvas, across, down, box, base + box.rows * (box.columns + 1))


def choose_canvas(width: int, height: int, canvases: Sequence[Canvas]) -> Canvas:
    """The canvas that keeps most of the picture's pixels; of equals, the one that wastes least; of those, the first."""
    best, best_fit = canvases[0], (-1, 0)
    for canvas in canvases:
        scale = min(canvas.width / width, canvas.height / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        fit = (effective, effective - canvas.width * canvas.height)
        if fit > best_fit:
            best, best_fit = canvas, fit
    return best


def fit_within(width: int, height: int, canvas: Canvas) -> tuple[int, int]:
    """The size (width, height) to resize to before centring on the canvas: one side exact, the other rounded up."""
    across, down = canvas.width / width, canvas.height / height
    if across < down:
        return canvas.width, min(math.ceil(height * across), canvas.height)
    return min(math.ceil(width * down), canvas.width), canvas.height


def unpad_box(width: int, height: int, columns: int, rows: int) -> Box:
    """The part of a rows x columns feature map that shows picture, by Hugging Face's rounding (`int(round(x, 7))`)."""
    if width / height > columns / rows:
        kept = int(round(height * (columns / width), 7))
        margin = (rows - kept) // 2
        return Box(margin, rows - margin, 0, columns)
    kept = int(round(width * (rows / height), 7))
    margin = (columns - kept) // 2
    return Box(0, rows, margin, columns - margin)
