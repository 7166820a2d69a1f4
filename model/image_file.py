"""Image bytes: what they claim to be, and their pixels. Pillow only; never imports torch.

The header is read without decoding, so that limits are held before any memory is spent. Only formats on an allow-list
are opened, whatever the file's name or declared type says.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass

from PIL import ExifTags, Image, ImageOps

from model.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 64_000_000  # width x height; about 190 MB once decoded
MAX_SIDE = 32_767
_TRANSPOSED = {5, 6, 7, 8}  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class ImageHeader:
    """What an image's header says; width and height as the picture is meant to be seen (EXIF orientation applied)."""

    format: str
    width: int
    height: int


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Reads format and size without decoding. Raises ImageError for unreadable, unlisted or oversized images."""
    with _open(data) as image:
        width, height = image.size
        _check_size(width, height, max_pixels)
        if _exif(image).get(ExifTags.Base.Orientation) in _TRANSPOSED:
            width, height = height, width
        return ImageHeader(str(image.format), width, height)


def decode_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes to RGB, upright, first frame, transparency laid on white. Raises ImageError."""
    with _open(data) as image:
        _check_size(*image.size, max_pixels)
        _exif(image)
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _to_rgb(upright)
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise ImageError(f"The image cannot be decoded: {_reason(error)}.") from error


def image_digest(data: bytes, header: ImageHeader) -> str:
    """Names an image: SHA-256 of the bytes together with the dimensions they are read as."""
    digest = hashlib.sha256(f"{header.format}:{header.width}x{header.height}:".encode())
    digest.update(data)
    return digest.hexdigest()


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("The image is empty.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _check_size holds the limit
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"The image is too large: at most {MAX_PIXELS} pixels are accepted.") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ImageError(
            "The image is broken or of a type that is not accepted: send PNG, JPEG, WebP, GIF or BMP."
        ) from error


def _exif(image: Image.Image) -> Image.Exif:
    """What the header says, kept for whoever asks the image later (`exif_transpose`).

    A PNG's own `getexif` would decode every pixel in search of a chunk that stands after them. Such a chunk does not
    count here, neither for the size that is told nor for the pixels that are made.
    """
    return Image.Image.getexif(image)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"The image has no pixels ({width}x{height}).")
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise ImageError(
            f"The image is too large: {width}x{height} is {width * height} pixels; at most {max_pixels} pixels and "
            f"{MAX_SIDE} a side are accepted."
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image.copy()
    if image.mode.startswith("I;16") or image.mode == "I":
        return image.point(lambda value: value / 256).convert("L").convert("RGB")  # 16-bit greys to 8
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    text = str(error).split("\n")[0]
    return text if text and "0x" not in text else type(error).__name__
