"""Image bytes: allow-listed formats, headers before pixels, limits before memory."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

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


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("TIFF", "is TIFF"),
        ("PPM", "is PPM"),
        ("ICO", r"is an icon \(ICO\)"),
        ("ICNS", r"is an icon \(ICNS\)"),
        ("AVIF", "is AVIF"),
        ("JPEG2000", "is JPEG 2000"),
        ("PDF", "is PDF"),
        ("DDS", "is DDS"),
        ("TGA", "broken or of a type"),
    ],
)
def test_formats_off_the_list_are_refused_by_name_and_no_decoder_sees_them(
    format: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(Image.new("RGB", (16, 16)), format)
    monkeypatch.setattr(Image, "open", None)
    for read in (read_header, decode_rgb):
        with pytest.raises(ImageError, match=f"{name}.*PNG, JPEG, WebP, GIF or BMP"):
            read(data)


@pytest.mark.parametrize(
    "signature", [b"SIMPLE  =", b"8BPS", b"MM\x00*", b"\x00\x00\x00\x1cftypheic", b"<svg ", b"%!PS"]
)
def test_other_signatures_are_refused_by_name(signature: bytes) -> None:
    with pytest.raises(ImageError, match=r"^The image is [A-Za-z ()\d]+, a type that is not accepted"):
        read_header(signature + bytes(200))


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        read_header(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
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


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (23, 37, 3), np.uint8))
TURNED = Image.Exif()
TURNED[0x0112] = 6
FRAMES = [NOISE.rotate(90), NOISE.rotate(180)]


def deep() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 65536, (23, 37), np.uint16))


# Every kind of file that is accepted, 37 by 23 unless the name says more.
KINDS = {
    **{f"PNG {mode}": encoded(NOISE.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    "PNG 16 bits": encoded(deep(), "PNG"),
    "PNG animated": encoded(NOISE, "PNG", save_all=True, append_images=FRAMES),
    "PNG animated beside": encoded(NOISE, "PNG", save_all=True, append_images=FRAMES, default_image=True),
    **{f"JPEG {mode}": encoded(NOISE.convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")},
    **{f"JPEG {mode} progressive": encoded(NOISE.convert(mode), "JPEG", progressive=True) for mode in ("L", "CMYK")},
    "JPEG of several": encoded(NOISE, "MPO", save_all=True, append_images=FRAMES),
    "JPEG after a comment": encoded(NOISE, "JPEG", comment=b"x" * 60_000),
    **{f"WEBP {mode}": encoded(NOISE.convert(mode), "WEBP") for mode in ("RGB", "RGBA")},
    "WEBP lossless": encoded(NOISE, "WEBP", lossless=True),
    "WEBP animated": encoded(NOISE, "WEBP", save_all=True, append_images=FRAMES, lossless=True),
    **{f"GIF {mode}": encoded(NOISE.convert(mode), "GIF") for mode in ("L", "P", "RGBA")},
    "GIF animated": encoded(NOISE, "GIF", save_all=True, append_images=FRAMES),
    **{f"BMP {mode}": encoded(NOISE.convert(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")},
    **{f"{format} turned": encoded(NOISE, format, exif=TURNED) for format in ("PNG", "JPEG", "WEBP", "MPO")},
    **{
        f"{format} of {width} by {height}": encoded(NOISE.resize((width, height)), format)
        for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP")
        for width, height in ((1, 1), (1, 900), (900, 1))
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_header_says_what_decoding_finds(kind: str) -> None:
    header, picture = read_header(KINDS[kind]), decode_rgb(KINDS[kind])
    assert (header.format, header.width, header.height) == (kind.split()[0].replace("MPO", "JPEG"), *picture.size)
    assert picture.mode == "RGB"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "animated" in kind])
def test_of_an_animation_the_first_picture_is_taken(kind: str) -> None:
    expected = NOISE.quantize() if kind.startswith("GIF") else NOISE
    picture = np.asarray(decode_rgb(KINDS[kind])).astype(int)
    difference = np.abs(picture - np.asarray(expected.convert("RGB")).astype(int)).mean()
    others = min(np.abs(picture - np.asarray(frame).astype(int)).mean() for frame in FRAMES)
    assert difference < 30 < others


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short_anywhere_is_refused(kind: str) -> None:
    data = KINDS[kind]
    whole = decode_rgb(data).tobytes()
    for end in sorted({*range(min(64, len(data) // 2)), *range(64, len(data) // 2, 97)}):
        try:
            assert decode_rgb(data[:end]).tobytes() == whole, f"{end} of {len(data)} bytes made another picture"
        except ImageError:
            continue


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_turns_pixels_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(NOISE, "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image)
    assert decode_rgb(data).tobytes() == expected.tobytes()
    assert (read_header(data).width, read_header(data).height) == expected.size


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(NOISE, "JPEG", exif=exif)
    assert (read_header(data).width, read_header(data).height) == NOISE.size == decode_rgb(data).size


def test_a_colour_declared_transparent_is_laid_on_white() -> None:
    data = encoded(Image.new("RGB", (4, 4), (9, 8, 7)), "PNG", transparency=(9, 8, 7))
    assert decode_rgb(data).getpixel((1, 1)) == (255, 255, 255)


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    for data in (
        encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), format, lossless=True) for format in ("PNG", "WEBP")
    ):
        assert decode_rgb(data).getpixel((1, 1)) == (127, 127, 127)
