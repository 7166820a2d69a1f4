"""PNG and the first image of APNG, up to the first IDAT (W3C PNG, third edition, §5 and §11)."""

from __future__ import annotations

import zlib
from struct import unpack_from

from model.image_headers.base import MAX_STEPS, Stored, broken, too_long, unsupported
from model.image_headers.exif import exif_orientation

_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type
_HEADER_END = 33  # signature, then IHDR's length, kind, 13 bytes and checksum


def read_png(data: bytes) -> Stored:
    """An orientation counts only where it stands before the pixels: one after them would need a walk over them all."""
    length, kind = unpack_from(">I4s", data, 8)
    if (length, kind) != (13, b"IHDR"):
        raise broken("PNG", "its first chunk is no header")
    width, height, depth, colour, compression, filtering, interlace, checksum = unpack_from(">IIBBBBBI", data, 16)
    if checksum != zlib.crc32(data[12:29]):
        raise broken("PNG", "the checksum of its header is wrong")
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise broken("PNG", "its header names a kind of pixels that does not exist")
    at, orientation = _HEADER_END, None
    for _ in range(MAX_STEPS):
        length, kind = unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            return Stored(width, height, orientation or 1)
        if kind == b"IHDR":
            raise unsupported("PNG", "it has two headers")
        if kind == b"IEND":
            raise broken("PNG", "it has no pixels")
        if length > len(data) - at - 12:
            raise broken("PNG", "it ends before its pixels begin")
        if kind == b"eXIf" and orientation is None:
            orientation = exif_orientation(data[at + 8 : at + 8 + length])
        if kind == b"fcTL" and unpack_from(">IIII", data, at + 12) != (width, height, 0, 0):
            raise broken("PNG", "the first frame of its animation is not of its own size")
        at += 12 + length
    raise too_long("PNG", "chunks")
