"""The one thing that EXIF says about an image's shape: its orientation (EXIF 2.32 §4.6.4, TIFF 6.0 §2).

Only EXIF counts, as in browsers; an orientation in XMP is not looked for. What cannot be read says nothing.
"""

from __future__ import annotations

import struct

_ORIENTATION = 0x0112
_MAX_ENTRIES = 512
_FORMS = {1: "B", 3: "H", 4: "I"}  # TIFF's BYTE, SHORT, LONG


def exif_orientation(block: bytes) -> int:
    """1 to 8; 1 where the block names none or cannot be read. `block` may begin 'Exif', two zeros."""
    tiff = block.removeprefix(b"Exif\x00\x00")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        magic, start = struct.unpack_from(order + "HI", tiff, 2)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for number in range(min(count, _MAX_ENTRIES)):
            at = start + 2 + 12 * number
            tag, kind, values = struct.unpack_from(order + "HHI", tiff, at)
            if tag == _ORIENTATION:
                (value,) = struct.unpack_from(order + _FORMS.get(kind, "H"), tiff, at + 8)
                sound = magic == 42 and kind in _FORMS and values == 1 and 1 <= value <= 8
                return int(value) if sound else 1
    except struct.error:
        return 1
    return 1
