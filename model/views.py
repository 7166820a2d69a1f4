"""The views of a picture that the vision tower sees, as 8-bit RGB squares: the whole picture, and the tiles.

Resizing is Pillow's bicubic on 8-bit pixels, as in the references and in Hugging Face's Pillow processors. Pillow works
in two passes, across and then down, and rounds to 8 bits between them: a padded square is made pass by pass, with the
same bytes as result but without the square, which would take gigabytes for a picture of one long line.
"""

from __future__ import annotations

from PIL import Image

from model.errors import ModelError
from model.geometry import BaseView, ImageLayout, fit_within, paste_at

Colour = tuple[int, int, int]

_BICUBIC = Image.Resampling.BICUBIC
_BAND_PIXELS = 4_000_000  # of a padded square that are laid out at once
_SQUARE_PIXELS = 16_000_000  # of a padded square that are worth working through for a thin picture
_LONGEST_CROP = 64  # times as long as wide; see `_crop_centre`


def base_view(image: Image.Image, how: BaseView, size: int, ground: Colour) -> Image.Image:
    """The whole picture as one square: its centre, padded with `ground`, or stretched."""
    if how == "crop":
        return _crop_centre(image, size)
    if how == "pad":
        return _pad_square(image, size, ground)
    return image.resize((size, size), _BICUBIC)


def tile_views(image: Image.Image, layout: ImageLayout, size: int) -> list[Image.Image]:
    """Crops in row-major order from the canvas on which the picture is centred on black."""
    if layout.canvas is None:
        return []
    canvas = layout.canvas
    if layout.tiles_across * size != canvas.width or layout.tiles_down * size != canvas.height:
        raise ModelError(f"canvas {canvas.width}x{canvas.height} is not made of whole tiles of {size} pixels")
    fitted = fit_within(*image.size, canvas)
    laid = Image.new("RGB", canvas)
    laid.paste(image.resize(fitted, _BICUBIC), paste_at(fitted, canvas))
    return [
        laid.crop((x, y, x + size, y + size))
        for y in range(0, canvas.height, size)
        for x in range(0, canvas.width, size)
    ]


def _crop_centre(image: Image.Image, size: int) -> Image.Image:
    """The shorter side becomes `size`, the middle of the longer one is kept.

    Of a picture longer than 64 times its width only the middle is resized at all: the references would lay out
    gigabytes for it. What is kept of it differs by no more than the rounding of its place.
    """
    width, height = image.size
    longest = _LONGEST_CROP * min(width, height)
    if max(width, height) > longest:
        left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
        image = image.crop((left, top, left + min(width, longest), top + min(height, longest)))
        width, height = image.size
    scaled = int(size * max(width, height) / min(width, height))
    target = (size, scaled) if width <= height else (scaled, size)
    left, top = (target[0] - size) // 2, (target[1] - size) // 2
    return image.resize(target, _BICUBIC).crop((left, top, left + size, top + size))


def _pad_square(image: Image.Image, size: int, ground: Colour) -> Image.Image:
    """The picture in the middle of a square of its longer side, resized.

    A tall picture's first pass goes through the whole square, row by row. Where that is many times the picture, the
    passes change places: the cost falls to the picture's own, and about one value in fifty differs by one step of 255.
    """
    width, height = image.size
    if width == height:
        return image.resize((size, size), _BICUBIC)
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    if width > height:
        half = Image.new("RGB", (size, side), ground)
        half.paste(image.resize((size, height), _BICUBIC), (0, top))
    elif side * side <= max(_SQUARE_PIXELS, 2 * width * height):
        half = Image.new("RGB", (size, side), ground)
        rows = max(1, _BAND_PIXELS // side)
        for first in range(0, side, rows):
            last = min(first + rows, side)
            band = Image.new("RGB", (side, last - first), ground)
            band.paste(image.crop((0, first, width, last)), (left, 0))
            half.paste(band.resize((size, last - first), _BICUBIC), (0, first))
    else:
        half = Image.new("RGB", (side, size), ground)
        half.paste(image.resize((width, size), _BICUBIC), (left, 0))
    return half.resize((size, size), _BICUBIC)
