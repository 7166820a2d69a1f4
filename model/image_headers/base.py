"""What all readers of headers share. They take bytes by `struct.unpack_from`, whose error means that the file ends."""

from __future__ import annotations

from dataclasses import dataclass

from model.errors import ImageError

MAX_STEPS = 10_000  # chunks, segments or blocks that may stand before the pixels


@dataclass(frozen=True)
class Stored:
    """An image as it lies in its file: pixels a row and rows, and how EXIF wants it turned (1 to 8, 1: not at all)."""

    width: int
    height: int
    orientation: int = 1


def broken(format: str, reason: str) -> ImageError:
    """The file keeps not to its format."""
    return ImageError(f"The image is broken ({format}): {reason}.")


def unsupported(format: str, reason: str) -> ImageError:
    """The file may be sound, but is of a kind that is not read here."""
    return ImageError(f"The image is not accepted ({format}): {reason}. Save it anew as an ordinary PNG or JPEG.")


def too_long(format: str, what: str) -> ImageError:
    return unsupported(format, f"more than {MAX_STEPS} {what} stand before its pixels")
