"""WebP, still or the first frame of an animation (RFC 9649). Canvas and frame must agree."""

from __future__ import annotations

from collections.abc import Iterator
from struct import unpack_from

from model.image_headers.base import MAX_STEPS, Stored, broken, too_long, unsupported
from model.image_headers.exif import exif_orientation

_ANIMATED, _WITH_EXIF = 0x02, 0x08  # of VP8X's flags
_LEAST_BYTES = {b"VP8 ": 10, b"VP8L": 5}  # of the headers of the two kinds of picture


def read_webp(data: bytes) -> Stored:
    (size,) = unpack_from("<I", data, 4)
    end = 8 + size
    if end > len(data):
        raise broken("WebP", "it is cut short")
    first, at, behind = next(_chunks(data, 12, end), (b"", 0, 0))
    if first in _LEAST_BYTES:
        return Stored(*_bitstream(first, data, at, behind))
    if first != b"VP8X":
        raise broken("WebP", "its first chunk is no picture")
    flags, low, middle = unpack_from("<B3xIH", data, at)  # two sizes of 24 bits follow the flags
    canvas = (1 + (low & 0xFFFFFF), 1 + (low >> 24 | middle << 8))
    frame, orientation = None, None
    for kind, start, stop in _chunks(data, behind + (behind - at) % 2, end):
        if kind == b"VP8X":
            raise unsupported("WebP", "it has two headers")
        if kind in _LEAST_BYTES and not flags & _ANIMATED:
            if frame is not None:
                raise unsupported("WebP", "it has two pictures")
            frame = _bitstream(kind, data, start, stop)
        elif kind == b"ANMF" and flags & _ANIMATED and frame is None:
            _hold_frame(data, start, stop, canvas)
            frame = canvas
        elif kind == b"EXIF" and flags & _WITH_EXIF and orientation is None:
            orientation = exif_orientation(data[start:stop])
    if frame is None:
        raise broken("WebP", "it has no picture")
    if frame != canvas:
        raise unsupported("WebP", f"its canvas is {canvas[0]}x{canvas[1]} but its picture {frame[0]}x{frame[1]}")
    return Stored(*canvas, orientation or 1)


def _chunks(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where its content begins, where it ends) of the chunks between `at` and `end`."""
    for _ in range(MAX_STEPS):
        if at + 8 > end:
            return
        kind, length = unpack_from("<4sI", data, at)
        start, stop = at + 8, at + 8 + length
        if stop > end:
            raise broken("WebP", "a chunk is longer than the file")
        yield kind, start, stop
        at = stop + length % 2
    raise too_long("WebP", "chunks")


def _hold_frame(data: bytes, start: int, stop: int, canvas: tuple[int, int]) -> None:
    """The animation's first frame must lie on the canvas and have the size that it says."""
    sizes = int.from_bytes(data[start : start + 12], "little")  # four numbers of 24 bits
    left, top, width, height = (sizes >> shift & 0xFFFFFF for shift in (0, 24, 48, 72))
    left, top, width, height = 2 * left, 2 * top, width + 1, height + 1
    if left + width > canvas[0] or top + height > canvas[1]:
        raise unsupported("WebP", f"its first frame does not lie within its {canvas[0]}x{canvas[1]} pixels")
    for kind, inner, inner_stop in _chunks(data, start + 16, stop):
        if kind in _LEAST_BYTES:
            if _bitstream(kind, data, inner, inner_stop) != (width, height):
                raise unsupported("WebP", "its first frame is not of the size that it says")
            return
    raise broken("WebP", "its first frame has no picture")


def _bitstream(kind: bytes, data: bytes, start: int, stop: int) -> tuple[int, int]:
    """Width and height as the lossy (RFC 6386 §9.1) or lossless stream itself says."""
    if stop - start < _LEAST_BYTES[kind]:
        raise broken("WebP", "its picture is cut short")
    if kind == b"VP8 ":
        tag, mark, width, height = unpack_from("<H1x3sHH", data, start)
        if tag & 1 or mark != b"\x9d\x01\x2a":
            raise broken("WebP", "its picture does not begin with a key frame")
        return width & 0x3FFF, height & 0x3FFF
    mark, bits = unpack_from("<BI", data, start)
    if mark != 0x2F or bits >> 29:
        raise broken("WebP", "its lossless picture has no header")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
