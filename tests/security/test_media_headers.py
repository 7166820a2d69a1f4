"""A picture's header is read without decoding its pixels, and says what decoding will find."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from model.errors import ImageError
from model.image_file import decode_rgb, read_header

TURNED = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, before: bytes = b"", pixels: bytes | None = None, after: bytes = b"") -> bytes:
    if pixels is None:
        pixels = zlib.compress((b"\x00" + bytes(3 * width)) * height)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixels) + after + chunk(b"IEND", b"")


def test_pixels_are_not_touched():
    broken = png(7000, 7000, pixels=b"no pixels at all")
    header = read_header(broken)
    assert (header.format, header.width, header.height) == ("PNG", 7000, 7000)
    with pytest.raises(ImageError):
        decode_rgb(broken)


@pytest.mark.parametrize("place", ["before", "after"])
def test_header_and_pixels_agree_wherever_the_orientation_stands(place):
    data = png(40, 20, **{place: chunk(b"eXIf", TURNED[6:])})
    header = read_header(data)
    assert (header.width, header.height) == decode_rgb(data).size
    assert (header.width, header.height) == ((20, 40) if place == "before" else (40, 20))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_orientation_counts_in_every_format_that_has_one(kind):
    data = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(data, kind, exif=exif)
    header = read_header(data.getvalue())
    assert (header.width, header.height) == decode_rgb(data.getvalue()).size == (20, 40)
