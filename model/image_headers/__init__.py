"""What image files say of themselves, read without decoding and without a decoder's code: PNG, JPEG, WebP, GIF, BMP.

A walk over chunks, segments or blocks up to the pixels, under a bound on steps. A file that two readers could take for
two sizes is refused here, so that what is counted from a header is what decoding finds. Signatures tell the formats
apart; names and declared types count for nothing.
"""

from __future__ import annotations

import struct

from model.errors import ImageError
from model.image_headers.base import Stored, broken
from model.image_headers.bmp import read_bmp
from model.image_headers.gif import read_gif
from model.image_headers.jpeg import read_jpeg
from model.image_headers.png import read_png
from model.image_headers.signatures import accepted_format, name_of_other
from model.image_headers.webp import read_webp

__all__ = ["Stored", "read_stored"]

_READERS = {"PNG": read_png, "JPEG": read_jpeg, "WEBP": read_webp, "GIF": read_gif, "BMP": read_bmp}


def read_stored(data: bytes) -> tuple[str, Stored]:
    """Format and stored form. Raises ImageError, and nothing else, whatever the bytes are."""
    if not data:
        raise ImageError("The image is empty.")
    format = accepted_format(data)
    if format is None:
        other = name_of_other(data)
        what = f"is {other}, a type that is" if other else "is broken or of a type that is"
        raise ImageError(f"The image {what} not accepted: send PNG, JPEG, WebP, GIF or BMP.")
    try:
        return format, _READERS[format](data)
    except struct.error:
        raise broken(format, "it ends before its pixels begin") from None
