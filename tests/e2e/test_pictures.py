"""Kinds of pictures end to end: the worker sees what the controller counted, and a broken one is the client's error."""

from __future__ import annotations

import base64
import io
from typing import Any

import openai
import pytest
from PIL import Image

pytestmark = pytest.mark.timeout(400)  # the first test waits for the system

GREEDY = {"temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,  # stored so, seen upright
    8: Image.Transpose.ROTATE_270,
}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def see(running: Any, client: openai.OpenAI) -> Any:
    """What the model says about a file: the answer's text, and what the picture cost."""

    def see(data: bytes) -> tuple[str | None, int]:
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        part = {"type": "image_url", "image_url": {"url": url}}
        messages: Any = [{"role": "user", "content": [part]}]
        answer = client.chat.completions.create(model=running.model, messages=messages, **GREEDY)
        return answer.choices[0].message.content, answer.usage.prompt_tokens_details.to_dict()["image_tokens"]

    return see


@pytest.fixture
def picture(pictures: Any) -> Image.Image:
    """Lies, 90 by 44."""
    return pictures.draw(1)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_turned_picture_is_seen_and_counted_upright(
    see: Any, picture: Image.Image, orientation: int, kind: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(picture.transpose(TURNS[orientation]), kind, exif=exif, lossless=True)
    assert see(stored) == see(encoded(picture, "PNG"))


def test_the_first_frame_is_what_is_seen_of_an_animation(see: Any, pictures: Any) -> None:
    first, *others = (pictures.draw(number).quantize(16) for number in (1, 6, 11))
    expected = see(encoded(first, "PNG"))
    for kind in ("GIF", "PNG"):
        assert see(encoded(first, kind, save_all=True, append_images=others)) == expected, kind
    rgb = [image.convert("RGB") for image in (first, *others)]
    assert see(encoded(rgb[0], "WEBP", save_all=True, append_images=rgb[1:], lossless=True)) == expected


def test_what_is_transparent_is_white(see: Any, picture: Image.Image) -> None:
    clear = picture.convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 40, 44))
    white = picture.copy()
    white.paste((255, 255, 255), (0, 0, 40, 44))
    expected = see(encoded(white, "PNG"))
    assert see(encoded(clear, "PNG")) == see(encoded(clear, "WEBP", lossless=True)) == expected


def test_sixteen_bits_are_seen_as_eight(see: Any, picture: Image.Image) -> None:
    grey = picture.convert("L")
    deep = Image.frombytes("I;16", grey.size, b"".join(bytes((7, value)) for value in grey.tobytes()))
    assert see(encoded(deep, "PNG")) == see(encoded(grey, "PNG"))


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"progressive": True}), ("JPEG", {}), ("GIF", {}), ("BMP", {})])
def test_a_file_cut_short_is_the_clients_error(
    see: Any, picture: Image.Image, kind: str, options: dict[str, Any]
) -> None:
    data = encoded(picture, kind, **options)
    assert see(data)
    with pytest.raises(openai.BadRequestError) as caught:
        see(data[: len(data) * 2 // 3])
    assert (caught.value.code, caught.value.param) == ("invalid_image", "messages[0].content[0].image_url")


def test_a_picture_whose_pixels_are_none_is_the_clients_error(see: Any, picture: Image.Image) -> None:
    data = bytearray(encoded(picture, "PNG"))
    at = data.index(b"IDAT") + 4
    data[at : at + 8] = bytes(8)
    with pytest.raises(openai.BadRequestError) as caught:
        see(bytes(data))
    assert (caught.value.code, caught.value.param) == ("invalid_image", "messages[0].content[0].image_url")
