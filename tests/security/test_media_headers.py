"""Headers that lie: of two sizes, of no end, of kinds that are rarely read. Refused with words, before any decoder."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.errors import ImageError
from model.image_file import decode_rgb, read_header

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (23, 37, 3), np.uint8))
TURNED = Image.Exif()
TURNED[0x0112] = 6


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


# 37 by 23
KINDS = {
    "PNG RGB": encoded(NOISE, "PNG"),
    "PNG animated": encoded(NOISE, "PNG", save_all=True, append_images=[NOISE.rotate(90)]),
    "PNG turned": encoded(NOISE, "PNG", exif=TURNED),
    "JPEG RGB": encoded(NOISE, "JPEG"),
    "JPEG L progressive": encoded(NOISE.convert("L"), "JPEG", progressive=True),
    "JPEG of several": encoded(NOISE, "MPO", save_all=True, append_images=[NOISE.rotate(90)]),
    "JPEG turned": encoded(NOISE, "JPEG", exif=TURNED),
    "WEBP RGB": encoded(NOISE, "WEBP"),
    "WEBP lossless": encoded(NOISE, "WEBP", lossless=True),
    "WEBP animated": encoded(NOISE, "WEBP", save_all=True, append_images=[NOISE.rotate(90)]),
    "WEBP turned": encoded(NOISE, "WEBP", exif=TURNED),
    "GIF L": encoded(NOISE.convert("L"), "GIF"),
    "GIF animated": encoded(NOISE, "GIF", save_all=True, append_images=[NOISE.rotate(90)]),
    "BMP RGB": encoded(NOISE, "BMP"),
    "BMP P": encoded(NOISE.convert("P"), "BMP"),
}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*before_pixels: bytes, width: int = 4, height: int = 4, depth: int = 8, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + bytes(3 * width)) * height))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before_pixels) + pixels + END


END = chunk(b"IEND", b"")


def segments(data: bytes) -> tuple[bytes, bytes, bytes]:
    """A JPEG's start, its frame header, and the rest."""
    at = data.index(b"\xff\xc0")
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[:at], data[at:end], data[end:]


def jpeg_with(**changes: int) -> bytes:
    """Bytes of a JPEG's frame header changed: what stands where counts from its marker on."""
    start, frame, rest = segments(KINDS["JPEG RGB"])
    changed = bytearray(frame)
    for where, value in changes.items():
        changed[int(where[1:])] = value
    return start + bytes(changed) + rest


def webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def webp(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def canvas(width: int, height: int, flags: int = 0) -> bytes:
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return webp_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + sizes)


def numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(3, "little") for value in values)


LOSSLESS = webp_chunk(b"VP8L", KINDS["WEBP lossless"][20:])
EMPTY_ANIMATION = webp_chunk(b"ANIM", bytes(6))


def frame_at(left: int, top: int, width: int = 37, height: int = 23) -> bytes:
    return webp_chunk(b"ANMF", numbers(left // 2, top // 2, width - 1, height - 1, 100) + b"\0" + LOSSLESS)


def gif(screen: tuple[int, int], frame: tuple[int, int, int, int]) -> bytes:
    data = bytearray(KINDS["GIF L"])
    data[6:10] = struct.pack("<HH", *screen)
    at = data.index(b"\x2c", 13 + 3 * (2 << (data[10] & 7)))
    data[at + 1 : at + 9] = struct.pack("<HHHH", *frame)
    return bytes(data)


def bmp(width: int, height: int, packing: int = 0, bits: int = 24) -> bytes:
    data = bytearray(KINDS["BMP RGB"])
    data[18:34] = struct.pack("<iiHHI", width, height, 1, bits, packing)
    return bytes(data)


TWO_SIZES = {
    "PNG with two headers": (png(png()[8:33]), "two headers"),
    "PNG whose header is not first": (b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"a\0b") + png()[8:], "no header"),
    "PNG whose header was changed": (png()[:19] + b"\x09" + png()[20:], "checksum"),
    "PNG with 3 bits": (png(depth=3), "does not exist"),
    "PNG without pixels": (png()[:33] + END, "no pixels"),
    "PNG whose first frame is smaller": (
        png(
            chunk(b"acTL", struct.pack(">II", 1, 0)),
            chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 2, 2, 1, 1, 1, 1, 0, 0)),
        ),
        "first frame",
    ),
    "PNG with chunks without end": (png(*[chunk(b"tEXt", b"")] * 10_001), "more than 10000 chunks"),
    "JPEG with two headers": (
        segments(KINDS["JPEG RGB"])[0] + segments(KINDS["JPEG RGB"])[1] + b"".join(segments(KINDS["JPEG RGB"])[1:]),
        "two headers",
    ),
    "JPEG without a height": (jpeg_with(_5=0, _6=0), "height"),
    "JPEG with 12 bits": (jpeg_with(_4=12), "12 bits"),
    "JPEG with arithmetic codes": (jpeg_with(_1=0xC9), "arithmetically"),
    "JPEG without loss": (jpeg_with(_1=0xC3), "lossless"),
    "JPEG within a JPEG": (b"\xff\xd8\xff\xd8" + KINDS["JPEG RGB"][2:], "begins or ends"),
    "WebP whose canvas is larger": (webp(canvas(38, 23), LOSSLESS), "canvas is 38x23 but its picture 37x23"),
    "WebP with two pictures": (webp(canvas(37, 23), LOSSLESS, LOSSLESS), "two pictures"),
    "WebP with two headers": (webp(canvas(37, 23), canvas(37, 23), LOSSLESS), "two headers"),
    "WebP without a picture": (webp(canvas(37, 23)), "no picture"),
    "WebP whose first frame lies outside": (
        webp(canvas(37, 23, 2), EMPTY_ANIMATION, frame_at(2, 0)),
        "does not lie within its 37x23",
    ),
    "WebP whose first frame is of another size": (
        webp(canvas(37, 23, 2), EMPTY_ANIMATION, frame_at(0, 0, 36, 23)),
        "not of the size that it says",
    ),
    "WebP longer than its file": (KINDS["WEBP lossless"][:-4], "cut short"),
    "GIF whose frame is wider than its screen": (gif((36, 23), (0, 0, 37, 23)), "does not lie within its 36x23"),
    "GIF whose frame stands aside": (gif((37, 23), (1, 0, 37, 23)), "does not lie within"),
    "GIF whose frame is empty": (gif((37, 23), (0, 0, 0, 23)), "no pixels"),
    "GIF without a frame": (KINDS["GIF L"][:13] + bytes(3 * 256) + b";", "no frame"),
    "GIF with blocks without end": (b"GIF89a\x01\0\x01\0\0\0\0!\xfe" + b"\x01 " * 10_001, "more than 10000 blocks"),
    "BMP shorter than its size": (bmp(37, 2300), "too short"),
    "BMP with a negative width": (bmp(-37, 23), "too short"),
    "BMP with run lengths": (bmp(37, 23, packing=1, bits=8), "compressed"),
    "BMP with a JPEG within": (bmp(37, 23, packing=4), "compressed"),
}


@pytest.mark.parametrize("what", TWO_SIZES)
def test_what_could_be_taken_for_two_sizes_or_is_rare_is_refused_with_words(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, words = TWO_SIZES[what]
    monkeypatch.setattr(Image, "open", None)
    for read in (read_header, decode_rgb):
        with pytest.raises(ImageError, match=words):
            read(data)


def test_a_frame_within_its_canvas_is_accepted() -> None:
    """The frames above are refused for where they lie, not for how these tests put them together."""
    data = webp(canvas(40, 30, 2), EMPTY_ANIMATION, frame_at(2, 4))
    assert (read_header(data).width, read_header(data).height) == decode_rgb(data).size == (40, 30)
    assert decode_rgb(gif((50, 40), (13, 17, 37, 23))).size == (50, 40)


def test_rows_from_the_top_make_the_same_size() -> None:
    data = bmp(37, -23)
    assert (read_header(data).width, read_header(data).height) == decode_rgb(data).size == (37, 23)


def test_pixels_are_not_touched() -> None:
    broken = png(width=7000, height=7000)[:-40]
    assert (read_header(broken).width, read_header(broken).height) == (7000, 7000)
    with pytest.raises(ImageError):
        decode_rgb(broken)


@pytest.mark.parametrize("place", ["before", "after"])
def test_header_and_pixels_agree_wherever_the_orientation_stands(place: str) -> None:
    turned = chunk(b"eXIf", TURNED.tobytes())
    data = png(turned, width=40, height=20) if place == "before" else png(width=40, height=20)[:-12] + turned + END
    header = read_header(data)
    assert (header.width, header.height) == decode_rgb(data).size
    assert (header.width, header.height) == ((20, 40) if place == "before" else (40, 20))


def test_a_second_header_after_the_pixels_changes_nothing() -> None:
    data = png()[:-12] + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)) + END
    assert (read_header(data).width, read_header(data).height) == decode_rgb(data).size == (4, 4)


@pytest.mark.parametrize("progressive", [True, False])
def test_scans_without_end_are_refused_by_the_header(progressive: bool) -> None:
    """Each costs a pass over all pixels: 400 of them in 100 kB kept a decoder busy for seconds."""
    data = encoded(NOISE.convert("L") if progressive else NOISE, "JPEG", progressive=progressive)
    at = data.rindex(b"\xff\xda")
    scan = data[at:-2] if progressive else b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x00"
    few, many = (data[:at] + scan * count + b"\xff\xd9" for count in (50, 200))
    assert read_header(few).width == 37
    with pytest.raises(ImageError, match="more than 100 scans"):
        read_header(many)


def test_bytes_behind_the_end_are_not_taken_for_scans() -> None:
    """Cameras put films behind their pictures."""
    for kind in ("JPEG L progressive", "JPEG of several"):
        assert read_header(KINDS[kind] + b"\xff\xda" * 500).width == 37


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    places=st.lists(st.tuples(st.integers(0, 160), st.integers(0, 255)), min_size=1, max_size=6),
    end=st.none() | st.integers(0, 400),
)
def test_of_changed_headers_only_one_size_is_ever_told(
    kind: str, places: list[tuple[int, int]], end: int | None
) -> None:
    """Nothing but ImageError leaves, and what is decoded in spite of the change has the size that the header told."""
    data = bytearray(KINDS[kind])
    for place, value in places:
        data[place % len(data)] = value
    changed = bytes(data[:end])
    try:
        header = read_header(changed, max_pixels=1_000_000)
    except ImageError:
        with pytest.raises(ImageError):
            decode_rgb(changed, max_pixels=1_000_000)
        return
    try:
        assert decode_rgb(changed, max_pixels=1_000_000).size == (header.width, header.height)
    except ImageError:
        return
