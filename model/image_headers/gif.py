"""GIF up to its first frame (GIF89a specification). The picture is the logical screen with that frame on it."""

from __future__ import annotations

from struct import unpack_from

from model.image_headers.base import MAX_STEPS, Stored, broken, too_long, unsupported

_FRAME, _EXTENSION, _END = 0x2C, 0x21, 0x3B


def read_gif(data: bytes) -> Stored:
    width, height, flags = unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    in_extension = False
    for _ in range(MAX_STEPS):
        (byte,) = unpack_from("B", data, at)
        if in_extension:  # its parts, each with its length before it; one of length 0 ends it
            in_extension = byte > 0
            at += 1 + byte
        elif byte == _EXTENSION:
            in_extension = True
            at += 2
        elif byte == _FRAME:
            left, top, frame_width, frame_height = unpack_from("<HHHH", data, at + 1)
            if not (frame_width and frame_height):
                raise broken("GIF", "its first frame has no pixels")
            if left + frame_width > width or top + frame_height > height:
                raise unsupported("GIF", f"its first frame does not lie within its {width}x{height} pixels")
            return Stored(width, height)
        else:
            raise broken("GIF", "it has no frame" if byte == _END else "there is an unknown block before its frame")
    raise too_long("GIF", "blocks")
