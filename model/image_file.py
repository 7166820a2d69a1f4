"""Image bytes: what they claim to be, and their pixels. Pillow only; never imports torch.

The header is read by `model.image_headers`, without decoding and without Pillow, so that limits are held before any
memory is spent and no decoder sees what is not on the list of formats. Decoding must then find the same size.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

from PIL import Image

from model.errors import ImageError
from model.image_headers import Stored, read_stored

MAX_PIXELS = 64_000_000  # width x height; about 190 MB once decoded
MAX_SIDE = 32_767

# What turns a stored image upright, by EXIF orientation; the last four swap width and height.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPED = (5, 6, 7, 8)


@dataclass(frozen=True)
class ImageHeader:
    """What an image's header says; width and height as the picture is meant to be seen (EXIF orientation applied)."""

    format: str  # PNG, JPEG, WEBP, GIF or BMP
    width: int
    height: int


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Reads format and size without decoding. Raises ImageError for unreadable, unlisted or oversized images."""
    format, stored = _stored(data, max_pixels)
    if stored.orientation in _SWAPPED:
        return ImageHeader(format, stored.height, stored.width)
    return ImageHeader(format, stored.width, stored.height)


def decode_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes to RGB with 8 bits a colour, upright, first frame, transparency laid on white. Raises ImageError."""
    format, stored = _stored(data, max_pixels)
    try:
        with Image.open(io.BytesIO(data), formats=(format,)) as image:
            image.load()
            _hold_size(image, stored)
            turn = _UPRIGHT.get(stored.orientation)
            return _to_rgb(image if turn is None else image.transpose(turn))
    except ImageError:
        raise
    except Exception as error:  # whatever Pillow's readers stumble over, the file is to blame
        raise ImageError(f"The image cannot be decoded: {_reason(error)}.") from error


def image_digest(data: bytes, header: ImageHeader) -> str:
    """Names an image: SHA-256 of the bytes together with the dimensions they are read as."""
    digest = hashlib.sha256(f"{header.format}:{header.width}x{header.height}:".encode())
    digest.update(data)
    return digest.hexdigest()


def _stored(data: bytes, max_pixels: int) -> tuple[str, Stored]:
    format, stored = read_stored(data)
    _check_size(stored.width, stored.height, max_pixels)
    return format, stored


def _hold_size(image: Image.Image, stored: Stored) -> None:
    if image.size != (stored.width, stored.height):
        found = "{}x{}".format(*image.size)
        raise ImageError(f"The image is broken: its header says {stored.width}x{stored.height}, its pixels {found}.")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"The image has no pixels ({width}x{height}).")
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise ImageError(
            f"The image is too large: {width}x{height} is {width * height} pixels; at most {max_pixels} pixels and "
            f"{MAX_SIDE} a side are accepted."
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return image.point(lambda value: value / 256).convert("L").convert("RGB")  # 16-bit greys to 8
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    text = str(error).split("\n")[0]
    return text if text and "0x" not in text else type(error).__name__
