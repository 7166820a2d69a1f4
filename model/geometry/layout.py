"""One image's layout: the views to encode, what is kept of them, and the tokens that come of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from model.geometry.canvas import Canvas, choose_canvas
from model.geometry.features import Box, UnpadRule, covered_box, shrink, unpad_box

ImageMode = Literal["crop", "pad", "hd", "anyres"]
SeveralImages = Literal["tiles", "base"]
BaseView = Literal["crop", "pad", "stretch"]


class PixelBudget(NamedTuple):
    """What an image costs in pixels before any of them is touched."""

    decoded: int  # of the picture itself
    encoded: int  # of all tiles that the vision tower sees


@dataclass(frozen=True)
class ImageLayout:
    """How one image is laid out: the tiles to encode and the tokens that come of them.

    `tiles_across` and `tiles_down` are 0 when only the base view is encoded. `unpad` is the part of the
    (tiles_down * grid) x (tiles_across * grid) feature map that is kept, `shrunk` the (rows, columns) that it is
    interpolated to where it exceeds its budget. A newline token ends each row; `newline` says that one also ends a lone
    base view.
    """

    width: int
    height: int
    canvas: Canvas | None
    tiles_across: int
    tiles_down: int
    unpad: Box | None
    tokens: int
    shrunk: tuple[int, int] | None = None
    newline: bool = False
    base: BaseView = "stretch"

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
    extra_tokens: int = 0  # 1 where the CLS token is kept, -1 where a patch is dropped in its place
    base: BaseView = "stretch"  # how the whole image becomes a square
    unpad: UnpadRule = "round7"
    max_tiles: int | None = None  # the N of anyres_max_N
    several_images: SeveralImages = "tiles"
    newline: bool = False  # a newline token ends each image that is one view only

    def layout(self, width: int, height: int, images: int = 1) -> ImageLayout:
        """The layout of an image of this size, one of `images` in its conversation.

        Raises ValueError for an image without pixels.
        """
        if width < 1 or height < 1:
            raise ValueError(f"an image has at least one pixel a side, got {width}x{height}")
        return _layout(self, width, height, images > 1)

    def budget(self, width: int, height: int, images: int = 1) -> PixelBudget:
        """The pixels that the image's layout costs."""
        return PixelBudget(width * height, self.layout(width, height, images).tiles * self.tile**2)

    @property
    def max_tokens(self) -> int:
        """The most tokens that any image can cost."""
        return _max_tokens(self)


@lru_cache(maxsize=4096)
def _layout(geometry: ImageGeometry, width: int, height: int, several: bool) -> ImageLayout:
    base, grid = _base_tokens(geometry), geometry.grid
    if not geometry.canvases:
        tokens = base + geometry.newline
        return ImageLayout(width, height, None, 0, 0, None, tokens, newline=geometry.newline, base=geometry.base)
    if several and geometry.several_images == "base":
        return ImageLayout(width, height, None, 0, 0, None, base + 1, newline=True, base="pad")
    canvas = choose_canvas(width, height, geometry.canvases)
    across, down = canvas.width // geometry.tile, canvas.height // geometry.tile
    if geometry.unpad == "covered":
        box = covered_box(width, height, canvas, across * grid, down * grid)
    else:
        box = unpad_box(width, height, across * grid, down * grid, geometry.unpad)
    rows, columns = shrink(box.rows, box.columns, grid, geometry.max_tiles)
    shrunk = None if (rows, columns) == (box.rows, box.columns) else (rows, columns)
    tokens = base + rows * (columns + 1)
    return ImageLayout(width, height, canvas, across, down, box, tokens, shrunk, base=geometry.base)


@lru_cache(maxsize=64)
def _max_tokens(geometry: ImageGeometry) -> int:
    base = _base_tokens(geometry)
    if not geometry.canvases:
        return base + geometry.newline
    lone = base + 1 if geometry.several_images == "base" else 0
    kept = (shrink(*size, geometry.grid, geometry.max_tiles) for size in _kept_sizes(geometry))
    return max(lone, base + max(rows * (columns + 1) for rows, columns in kept))


def _kept_sizes(geometry: ImageGeometry) -> Iterator[tuple[int, int]]:
    """Every (rows, columns) that unpadding can leave: one side of the map whole, the other a part of it.

    The part is never smaller than the next smaller canvas of the same other side, which would have been chosen.
    """
    step = 1 if geometry.unpad == "covered" else 2  # else the same is taken off both sides
    cells = {
        (c.height // geometry.tile * geometry.grid, c.width // geometry.tile * geometry.grid) for c in geometry.canvases
    }
    for rows, columns in cells:
        lower = max((other for other, same in cells if same == columns and other < rows), default=0)
        yield from ((part, columns) for part in range(rows, lower - 1, -step))
        lower = max((other for same, other in cells if same == rows and other < columns), default=0)
        yield from ((rows, part) for part in range(columns, lower - 1, -step))


def _base_tokens(geometry: ImageGeometry) -> int:
    return geometry.grid * geometry.grid + geometry.extra_tokens
