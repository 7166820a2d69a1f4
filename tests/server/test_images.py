"""Pictures in requests: counted by their headers, refused early and with words, and never fetched by a worker."""

from __future__ import annotations

import io
import json

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
