"""Pictures in requests: counted by their headers, refused early and with words, and never fetched by a worker."""

from __future__ import annotations

import io
import json
import random

import pytest
from aiohttp import web
from PIL import Image


async def refusal(client, content, **fields):
    status, body, _ = await client.chat(content, **fields)
    return status, body["error"]


async def test_a_data_url_goes_to_the_worker_as_it_came(client, start_worker, png, data_url, with_image):
    worker = await start_worker("w1", client)
    content = with_image(data_url(png()))
    assert (await client.chat(content))[0] == 200
    assert worker.bodies[0]["messages"][0]["content"] == content
    assert client.controller.stats.recent[-1].images == 1


async def test_every_listed_format_passes_whatever_it_is_called(client, start_worker, data_url, with_image):
    await start_worker("w1", client)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        data = io.BytesIO()
        Image.new("RGB", (40, 30)).save(data, kind)
        assert (await client.chat(with_image(data_url(data.getvalue(), "x-something"))))[0] == 200, kind


async def test_a_large_picture_is_read_off_the_loop_and_passes(client, start_worker, data_url, with_image):
    worker = await start_worker("w1", client)
    data = io.BytesIO()
    Image.effect_noise((1200, 900), 90).save(data, "PNG")
    assert len(data.getvalue()) > 600_000
    assert (await client.chat(with_image(data_url(data.getvalue()))))[0] == 200
    assert len(worker.bodies) == 1


async def test_a_format_off_the_list_is_refused(client, start_worker, data_url, with_image):
    worker = await start_worker("w1", client)
    data = io.BytesIO()
    Image.new("RGB", (40, 30)).save(data, "TIFF")
    for picture in (data.getvalue(), b"no picture", b"<svg/>", b""):
        status, error = await refusal(client, with_image(data_url(picture)))
        assert status == 400
        assert error["param"] == "messages[0].content[1].image_url"
    assert worker.bodies == []
    assert await client.metric("image_rejections_total", reason="invalid_image") == 3


OTHER_SPELLINGS = [
    "data:image/png;base64,iVBO\nRw0KGgo=",
    "data:image/png;base64,iVBORw0KGg",
    "data:image/png;base64,====",
    "data:image/png;base64,AAAA====AAAA",
    "data:image/png,rawbytes",
    "data:text/html;base64,AAAA",
    "data:;base64,AAAA",
    "data:",
    "file:///etc/passwd",
    "/etc/passwd",
    "../picture.png",
    "ftp://example.org/p.png",
    "gopher://example.org/",
    "blob:abc",
    "",
]


async def test_other_spellings_of_urls_are_refused(client, start_worker, with_image):
    worker = await start_worker("w1", client)
    for url in OTHER_SPELLINGS:
        status, error = await refusal(client, with_image(url))
        assert status == 400, url
        assert error["param"] == "messages[0].content[1].image_url"
        assert error["code"] == "invalid_image_url"
        assert "passwd" not in error["message"]
    assert worker.bodies == []


async def test_padding_inside_a_long_data_url_is_found(client, start_worker, with_image):
    await start_worker("w1", client)
    for broken in (("A" * 262_140 + "AA==" + "A" * 400), ("A" * 262_140 + "A=AA" + "A" * 400)):
        status, error = await refusal(client, with_image("data:image/png;base64," + broken))
        assert (status, error["code"]) == (400, "invalid_image_url")


async def test_pixels_and_counts_are_bounded_before_anything_is_decoded(
    start_controller, start_worker, png, data_url, with_image
):
    client = await start_controller(max_image_pixels=1_000_000, max_request_pixels=1_500_000)
    worker = await start_worker("w1", client)
    status, error = await refusal(client, with_image(data_url(png(1001, 1000))))
    assert (status, error["code"]) == (400, "invalid_image")
    assert "1001x1000" in error["message"]
    part = with_image(data_url(png(900, 900)))[1]
    status, error = await refusal(client, [part, part])
    assert (status, error["code"], error["param"]) == (400, "too_many_pixels", "messages[0].content[1].image_url")
    status, error = await refusal(client, [with_image(data_url(png()))[1]] * 5)
    assert (status, error["code"], error["param"]) == (400, "too_many_images", "messages[0].content[4].image_url")
    assert "at most 4" in error["message"]
    assert worker.bodies == []


async def test_a_picture_over_the_byte_limit_is_413(start_controller, start_worker, data_url, with_image):
    client = await start_controller(max_image_bytes=1000)
    await start_worker("w1", client)
    assert (await refusal(client, with_image(data_url(bytes(2000)))))[0] == 413


async def test_pictures_that_cannot_fit_the_context_are_refused_with_the_numbers(
    client, start_worker, png, data_url, with_image
):
    # 56x56 fills its canvas: 2 x 2 patches of the base view, then 4 rows of 4 patches and a newline each.
    worker = await start_worker("w1", client, context_length=30)
    picture = with_image(data_url(png(56, 56)))
    assert (await client.chat(picture))[0] == 200
    status, error = await refusal(client, picture + picture)
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert "48 tokens (24 + 24)" in error["message"]
    assert "30 tokens" in error["message"]
    assert len(worker.bodies) == 1


async def test_a_model_without_eyes_says_so(client, start_worker, png, data_url, with_image):
    await start_worker("w1", client, image=None)
    status, error = await refusal(client, with_image(data_url(png())))
    assert (status, error["code"]) == (400, "images_not_supported")


@pytest.fixture
async def pictures(stack, png):
    """A server of pictures on loopback; counts what it was asked."""
    asked: list[str] = []

    async def serve(request):
        asked.append(request.path)
        if request.path == "/none.png":
            raise web.HTTPNotFound
        if request.path == "/moved.png":
            raise web.HTTPFound("/picture.png")
        if request.path == "/text.png":
            return web.Response(text="hello", content_type="image/png")
        return web.Response(body=png(), content_type="text/plain")

    app = web.Application()
    app.router.add_get("/{path:.*}", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}", asked


@pytest.mark.parametrize("form", ["object", "string"])
async def test_a_picture_by_url_is_fetched_here_and_put_inline(
    start_controller, start_worker, pictures, png, data_url, with_image, form
):
    client = await start_controller(media_allow_private=True, media_ports="*")
    worker = await start_worker("w1", client)
    base, asked = pictures
    content = with_image(f"{base}/moved.png")
    if form == "string":
        content[1]["image_url"] = content[1]["image_url"]["url"]
    status, _, _ = await client.chat([*content, content[1]], temperature=0.5)
    assert status == 200
    expected = data_url(png())
    for part in worker.bodies[0]["messages"][0]["content"][1:]:
        assert part["image_url"] == ({"url": expected} if form == "object" else expected)
    assert worker.bodies[0]["temperature"] == 0.5
    assert base not in json.dumps(worker.bodies)
    assert asked == ["/moved.png", "/picture.png"]  # the same URL twice is fetched once
    assert await client.metric("media_fetches_total", outcome="ok") == 1


async def test_a_picture_that_cannot_be_had_is_400_naming_the_part(
    start_controller, start_worker, pictures, with_image
):
    client = await start_controller(media_allow_private=True, media_ports="*")
    worker = await start_worker("w1", client)
    base, _ = pictures
    status, error = await refusal(client, with_image(f"{base}/none.png"))
    assert (status, error["code"]) == (400, "image_fetch_failed")
    assert "404" in error["message"]
    assert error["param"] == "messages[0].content[1].image_url"
    status, error = await refusal(client, with_image(f"{base}/text.png"))
    assert (status, error["code"]) == (400, "invalid_image")
    status, error = await refusal(client, with_image("http://127.0.0.1:9/x.png"))
    assert (status, error["code"]) == (400, "image_fetch_failed")
    assert worker.bodies == []
    assert client.controller.room.bytes == 0


async def test_by_default_no_url_leads_into_the_controllers_own_network(
    start_controller, start_worker, pictures, with_image
):
    client = await start_controller(media_ports="*")
    worker = await start_worker("w1", client)
    base, asked = pictures
    for url in (f"{base}/picture.png", base.replace("127.0.0.1", "localhost") + "/picture.png"):
        status, error = await refusal(client, with_image(url))
        assert (status, error["code"]) == (400, "image_url_not_allowed")
    assert asked == []
    assert worker.bodies == []
    assert await client.metric("media_fetches_total", outcome="refused") == 2


async def test_fetched_pictures_count_against_the_memory_of_the_controller(
    start_controller, start_worker, pictures, png, with_image
):
    client = await start_controller(media_allow_private=True, media_ports="*", max_inflight_bytes=300)
    await start_worker("w1", client)
    base, _ = pictures
    status, _, _ = await client.chat(with_image(f"{base}/picture.png"))
    assert status == 429
    assert client.controller.room.bytes == client.controller.room.requests == 0


NOISE = Image.merge("RGB", [Image.effect_noise((37, 23), 90) for _ in "rgb"])


def encoded(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def turned(orientation, size=(56, 28)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.new("RGB", size), "JPEG", exif=exif)


ACCEPTED = {
    "palette": encoded(NOISE.quantize(), "PNG"),
    "alpha": encoded(NOISE.convert("RGBA"), "PNG"),
    "16 bits": encoded(Image.new("I;16", (37, 23), 4096), "PNG"),
    "one bit": encoded(NOISE.convert("1"), "PNG"),
    "CMYK": encoded(NOISE.convert("CMYK"), "JPEG"),
    "progressive": encoded(NOISE, "JPEG", progressive=True),
    "several": encoded(NOISE, "MPO", save_all=True, append_images=[NOISE]),
    "lossless": encoded(NOISE, "WEBP", lossless=True),
    "animated GIF": encoded(NOISE, "GIF", save_all=True, append_images=[NOISE.rotate(90)]),
    "animated WebP": encoded(NOISE, "WEBP", save_all=True, append_images=[NOISE.rotate(90)]),
    "animated PNG": encoded(NOISE, "PNG", save_all=True, append_images=[NOISE.rotate(90)]),
    "a column": encoded(Image.new("RGB", (1, 900)), "PNG"),
    "a row": encoded(Image.new("RGB", (900, 1)), "JPEG"),
    "a point": encoded(Image.new("RGB", (1, 1)), "GIF"),
}

REFUSED = {
    "TIFF": (encoded(NOISE, "TIFF"), "is TIFF"),
    "AVIF": (encoded(NOISE, "AVIF"), "is AVIF"),
    "ICO": (encoded(NOISE, "ICO"), "is an icon (ICO)"),
    "FITS": (b"SIMPLE  =" + bytes(3000), "is FITS"),
    "PSD": (b"8BPS" + bytes(3000), "is a Photoshop document"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is SVG"),
    "PDF": (b"%PDF-1.7" + bytes(100), "is PDF"),
    "text": (b"hello", "broken or of a type that is not accepted"),
    "nothing": (b"", "cannot be read|valid base64|empty"),
    "a header alone": (encoded(NOISE, "PNG")[:33], "ends before its pixels begin"),
    "a WebP cut short": (encoded(NOISE, "WEBP")[:-10], "cut short"),
    "a BMP cut short": (encoded(NOISE, "BMP")[:-10], "too short for its size"),
    "a side too long": (encoded(Image.new("1", (40_000, 1)), "PNG"), "32767 a side"),
}


async def test_every_kind_of_a_listed_format_passes(client, start_worker, data_url, with_image):
    worker = await start_worker("w1", client)
    for kind, data in ACCEPTED.items():
        assert (await client.chat(with_image(data_url(data))))[0] == 200, kind
    assert len(worker.bodies) == len(ACCEPTED)


async def test_what_is_not_listed_or_broken_is_refused_by_name_before_any_decoder_sees_it(
    client, start_worker, data_url, with_image, monkeypatch
):
    worker = await start_worker("w1", client)
    monkeypatch.setattr(Image, "open", None)
    for kind, (data, reason) in REFUSED.items():
        status, error = await refusal(client, with_image(data_url(data, "png")))
        assert (status, error["param"]) == (400, "messages[0].content[1].image_url"), kind
        assert error["code"] == ("invalid_image" if data else "invalid_image_url")
        assert any(words in error["message"] for words in reason.split("|")), (kind, error)
    assert worker.bodies == []


async def test_tokens_are_counted_from_the_picture_as_it_is_seen(client, start_worker, data_url, with_image):
    """2 x 2 patches of the base view; 4 a row and a newline, over 2 rows where it lies and 4 where it stands."""
    image = {"tile": 28, "grid": 2, "canvases": [[56, 28], [28, 56]]}
    await start_worker("w1", client, context_length=10, image=image)
    for orientation in range(1, 9):
        stands = orientation > 4
        _, error = await refusal(client, with_image(data_url(turned(orientation))))
        assert f"{4 + 4 * 3 if stands else 4 + 2 * 5} tokens" in error["message"], (orientation, error)


async def test_a_prompt_too_large_is_refused_without_decoding_and_without_a_worker(
    client, start_worker, png, data_url, with_image, monkeypatch
):
    """Whose pixels are no pixels at all: who tried to decode them would say so."""
    worker = await start_worker("w1", client, context_length=30)
    monkeypatch.setattr(Image, "open", None)
    monkeypatch.setattr("zlib.decompress", None)
    hollow = with_image(data_url(png(3000, 3000)[:60] + b"no pixels at all"))
    status, error = await refusal(client, [hollow[1], hollow[1]])
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert "48 tokens (24 + 24)" in error["message"] and "30 tokens" in error["message"]
    assert worker.bodies == worker.headers == []


async def test_changed_headers_are_admitted_or_refused_and_never_a_fault(client, start_worker, data_url, with_image):
    await start_worker("w1", client, context_length=1 << 20)
    chance = random.Random(5)
    kinds = [*ACCEPTED.values(), turned(6)]
    seen = set()
    for _ in range(300):
        data = bytearray(chance.choice(kinds))
        for _ in range(chance.randint(1, 5)):
            data[chance.randrange(min(len(data), 120))] = chance.randrange(256)
        end = chance.choice([None, None, chance.randrange(len(data))])
        status, body, _ = await client.chat(with_image(data_url(bytes(data[:end]))))
        assert status in (200, 400), body
        seen.add(status)
        if status == 400:
            assert body["error"]["code"] in ("invalid_image", "invalid_image_url"), body
            assert body["error"]["param"] == "messages[0].content[1].image_url"
    assert seen == {200, 400}
