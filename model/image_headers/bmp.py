"""BMP: the header is all there is before the pixels (Microsoft's BITMAPCOREHEADER, BITMAPINFOHEADER and later ones)."""

from __future__ import annotations

from struct import unpack_from

from model.image_headers.base import Stored, broken, unsupported

_CORE = 12  # bytes of the oldest header
_HEADERS = (40, 52, 56, 64, 108, 124)
_BITS = (1, 4, 8, 16, 24, 32)
_RAW, _MASKED = (0,), (3, 6)  # ways that pixels may lie; run lengths, and JPEG or PNG within, are others


def read_bmp(data: bytes) -> Stored:
    """A negative height means rows from the top; the picture is as high either way."""
    start, size = unpack_from("<II", data, 10)
    if size == _CORE:
        width, height, planes, bits = unpack_from("<HHHH", data, 18)
        packing = 0
    elif size in _HEADERS:
        width, height, planes, bits, packing = unpack_from("<iiHHI", data, 18)
    else:
        raise broken("BMP", f"its header is {size} bytes long")
    if bits not in _BITS or planes != 1:
        raise broken("BMP", f"it has {planes} planes of {bits} bits")
    if packing not in _RAW and not (packing in _MASKED and bits in (16, 32)):
        raise unsupported("BMP", "its pixels are compressed")
    row = (width * bits + 31) // 32 * 4
    if width < 0 or start + row * abs(height) > len(data):
        raise broken("BMP", "it is too short for its size")
    return Stored(width, abs(height))
