"""Image bytes: allow-listed formats, headers before pixels, limits before memory."""

import io
import struct
import zlib

import pytest
from PIL import Image

from model.errors import ImageError
from model.image_file import decode_rgb, image_digest, read_header


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_accepted_formats_give_their_size_and_pixels(format: str) -> None:
    data = encoded(Image.new("RGB", (7, 5), (250, 10, 10)), format)
    header = read_header(data)
    assert (header.format, header.width, header.height) == (format, 7, 5)
    red, green, blue = decode_rgb(data).getpixel((3, 2))  # type: ignore[misc]
    assert red > 230 and green < 30 and blue < 30


@pytest.mark.parametrize("format", ["TIFF", "PPM", "ICO", "TGA"])
def test_formats_off_the_list_are_refused(format: str) -> None:
    with pytest.raises(ImageError, match="PNG, JPEG, WebP, GIF or BMP"):
        read_header(encoded(Image.new("RGB", (16, 16)), format))


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        read_header(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_truncated_file_is_refused_when_decoded(format: str) -> None:
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    data = encoded(noise, format)
    with pytest.raises(ImageError):
        decode_rgb(data[: len(data) // 2])


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    for read in (read_header, decode_rgb):
        with pytest.raises(ImageError, match="too large"):
            read(bomb)


def test_the_pixel_limit_is_the_callers() -> None:
    data = encoded(Image.new("RGB", (100, 100)), "PNG")
    with pytest.raises(ImageError, match="10000 pixels; at most 9999"):
        read_header(data, max_pixels=9999)


def test_rotation_by_exif_is_applied_to_header_and_pixels() -> None:
    picture = Image.new("RGB", (40, 20), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture, "JPEG", exif=exif)
    header = read_header(data)
    assert (header.width, header.height) == (20, 40) == decode_rgb(data).size


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),  # transparent: laid on white
        ("LA", (0, 0), (255, 255, 255)),
        ("L", 128, (128, 128, 128)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 0x8000, (128, 128, 128)),
    ],
)
def test_other_colour_modes_become_rgb(mode: str, colour: object, expected: tuple[int, int, int]) -> None:
    assert decode_rgb(encoded(Image.new(mode, (4, 4), colour), "PNG")).getpixel((1, 1)) == expected  # type: ignore[arg-type]


def test_palette_with_transparency_and_cmyk_become_rgb() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9] + [0] * 765)
    assert decode_rgb(encoded(palette, "PNG", transparency=0)).getpixel((1, 1)) == (255, 255, 255)
    red, green, blue = decode_rgb(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((1, 1))  # type: ignore[misc]
    assert red > 200 and green < 60 and blue < 60


def test_an_animated_gif_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_rgb(data).getpixel((1, 1)) == (255, 0, 0)


def test_the_digest_depends_on_bytes_and_dimensions() -> None:
    one, two = (encoded(Image.new("RGB", size, "red"), "PNG") for size in ((4, 4), (4, 5)))
    assert image_digest(one, read_header(one)) != image_digest(two, read_header(two))
    assert image_digest(one, read_header(one)) == image_digest(one, read_header(one))
