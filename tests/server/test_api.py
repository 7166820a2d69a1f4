"""What surrounds generation: tokens of a request, tokens of pictures, what models can do. Through the public port."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from model.geometry import Canvas, ImageGeometry

TOKENS = {"count": 2, "max_model_len": 4096, "tokens": [1, 2], "token_strs": None, "image_tokens": 0}


async def answer_with_tokens(request: web.Request) -> web.Response:
    return web.json_response(TOKENS)


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_a_worker_of_the_model_tells_the_tokens(client, start_worker, prefix):
    worker = await start_worker("w1", client)
    paths = []

    async def answer(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.json_response(TOKENS)

    worker.handler = answer
    asked = {"model": "demo", "prompt": "hello", "return_token_strs": False}
    status, told, headers = await client.post(asked, f"{prefix}/tokenize")
    assert (status, told) == (200, TOKENS)
    assert headers["X-Request-Id"]
    assert worker.bodies == [asked]
    assert (await client.post({"model": "demo", "tokens": [1, 2]}, f"{prefix}/detokenize"))[0] == 200
    assert paths == ["/tokenize", "/detokenize"]


async def test_pictures_of_a_conversation_pass_admission_before_a_worker_sees_them(
    client, start_worker, with_image, png, data_url
):
    worker = await start_worker("w1", client)
    worker.handler = answer_with_tokens

    async def ask(url: str):
        messages = [{"role": "user", "content": with_image(url)}]
        return await client.post({"model": "demo", "messages": messages}, "/v1/tokenize")

    assert (await ask(data_url(png())))[0] == 200
    for url in ("file:///etc/passwd", "http://127.0.0.1:1/x.png", data_url(b"no picture")):
        status, told, _ = await ask(url)
        assert status == 400, url
        assert told["error"]["param"] == "messages[0].content[1].image_url"
    assert len(worker.bodies) == 1


async def test_a_prompt_beyond_the_context_still_has_a_length(client, start_worker):
    worker = await start_worker("w1", client, context_length=16)
    worker.handler = answer_with_tokens
    body = {"model": "demo", "prompt": "x" * 100_000}
    assert (await client.post(body, "/v1/tokenize"))[0] == 200
    assert (await client.post({**body, "max_tokens": 1}, "/v1/completions"))[0] == 400


async def test_tokens_and_estimates_are_behind_the_key(start_controller, start_worker):
    client = await start_controller(api_keys=("key",))
    worker = await start_worker("w1", client)
    worker.handler = answer_with_tokens
    bodies = {
        "/v1/tokenize": {"model": "demo", "prompt": "x"},
        "/tokenize": {"model": "demo", "prompt": "x"},
        "/v1/detokenize": {"model": "demo", "tokens": [1]},
        "/v1/images/tokens": {"model": "demo", "images": [{"width": 1, "height": 1}]},
    }
    for path, body in bodies.items():
        assert (await client.post(body, path))[0] == 401
        assert (await client.post(body, path, {"Authorization": "Bearer key"}))[0] == 200
        assert (await client.post({**body, "model": "none"}, path, {"Authorization": "Bearer key"}))[0] == 404


async def test_a_worker_that_cannot_tokenize_is_told_about(client, start_worker):
    worker = await start_worker("w1", client)

    async def missing(request: web.Request) -> web.Response:
        return web.json_response({"detail": "Not Found"}, status=404)

    worker.handler = missing
    status, told, _ = await client.post({"model": "demo", "prompt": "x"}, "/v1/tokenize")
    assert (status, told["error"]["code"]) == (404, "worker_error"), told


async def test_pictures_are_counted_from_their_sizes_without_a_worker(client, start_worker):
    worker = await start_worker("w1", client)
    geometry = ImageGeometry(28, 2, tuple(Canvas(*size) for size in ((56, 28), (28, 56), (56, 56))))
    sizes = [(40, 30), (300, 20), (28, 28)]
    status, told, _ = await client.post(
        {"model": "demo", "images": [{"width": width, "height": height} for width, height in sizes]},
        "/v1/images/tokens",
    )
    expected = [geometry.layout(*size, len(sizes)) for size in sizes]
    assert status == 200
    assert [image["tokens"] for image in told["images"]] == [layout.tokens for layout in expected]
    assert [image["tiles"] for image in told["images"]] == [layout.tiles for layout in expected]
    assert told["images"][1]["canvas"] == {"width": 56, "height": 28}
    assert told["total_tokens"] == sum(layout.tokens for layout in expected)
    assert (told["context_length"], told["context_left"]) == (4096, 4096 - told["total_tokens"])
    assert (told["max_images"], told["fits"], told["version"]) == (4, True, "v1")
    assert worker.bodies == []


async def test_pictures_are_counted_as_a_chat_counts_them(client, start_worker, png, data_url, with_image):
    await start_worker("w1", client, context_length=50)
    picture = {"url": data_url(png(40, 30))}
    status, told, _ = await client.post(
        {"model": "demo", "images": [picture, {"width": 40, "height": 30}]}, "/v1/images/tokens"
    )
    assert status == 200
    assert told["images"][0] == told["images"][1]
    assert (told["images"][0]["width"], told["images"][0]["height"]) == (40, 30)
    status, many, _ = await client.post({"model": "demo", "images": [picture] * 4}, "/v1/images/tokens")
    assert (many["total_tokens"], many["context_left"], many["fits"]) == (96, -46, False)
    refused = (await client.chat(with_image(picture["url"]) * 4))[1]
    assert "96 tokens" in refused["error"]["message"]


@pytest.mark.parametrize(
    ("images", "param"),
    [
        ([], "images"),
        ([{"width": 0, "height": 5}], "images[0].width"),
        ([{"width": 5, "height": 5}, {"width": 10**9, "height": 5}], "images[1].width"),
        ([{"width": "5", "height": 5}], "images[0].width"),
        ([{"height": 5}], "images[0].width"),
        ([5], "images[0]"),
        ([{"url": "data:image/png;base64,aGVsbG8="}], "images[0].url"),
        ([{"width": 5, "height": 5}, {"url": "file:///etc/passwd"}], "images[1].url"),
        ([{"width": 5, "height": 5}] * 1025, "images"),
    ],
)
async def test_what_cannot_be_counted_is_told_by_its_field(client, start_worker, images, param):
    await start_worker("w1", client)
    status, told, _ = await client.post({"model": "demo", "images": images}, "/v1/images/tokens")
    assert (status, told["error"]["param"]) == (400, param)


async def test_a_model_without_eyes_counts_no_pictures(client, start_worker):
    await start_worker("w1", client, image=None)
    body = {"model": "demo", "images": [{"width": 5, "height": 5}]}
    status, told, _ = await client.post(body, "/v1/images/tokens")
    assert (status, told["error"]["code"]) == (400, "images_not_supported")


async def test_models_say_what_they_can_do(client, start_worker):
    able = {"structured_output": True, "tools": "auto", "logprobs": True}
    await start_worker("w1", client, **able, created=5, version="v2")
    await start_worker("w2", client, **able | {"tools": "forced"}, created=4, context_length=1024, max_images=2)
    status, listed = await client.get("/v1/models")
    (model,) = listed["data"]
    assert status == 200
    assert (await client.get("/v1/models/demo")) == (200, model)
    assert (model["id"], model["object"], model["workers"]) == ("demo", "model", 2)
    assert (model["version"], model["versions"]) == ("v2", ["v2", "v1"])
    assert (model["context_length"], model["max_model_len"]) == (1024, 1024)
    can = model["capabilities"]
    assert (can["vision"], can["max_images"], can["structured_output"]) == (True, 2, True)
    assert (can["tools"], can["tool_choice_auto"], can["logprobs"]) == (True, False, True)
    assert can["image"]["canvases"][0] == {"width": 56, "height": 28}
    assert (can["image"]["tile"], can["image"]["grid"]) == (28, 2)
    assert can["image"]["max_tokens"] == 4 + 4 * 5


async def test_models_of_workers_that_say_nothing_promise_nothing(client, start_worker):
    await start_worker("w1", client, image=None)
    can = (await client.get("/v1/models/demo"))[1]["capabilities"]
    assert (can["vision"], can["max_images"], can["image"]) == (False, 0, None)
    assert (can["structured_output"], can["tools"], can["tool_choice_auto"], can["logprobs"]) == (False,) * 4


async def test_a_client_that_leaves_ends_the_tokenizing(client, start_worker):
    worker = await start_worker("w1", client)
    begun = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        begun.set()
        await asyncio.sleep(60)
        return web.json_response(TOKENS)

    worker.handler = slow
    asking = asyncio.create_task(client.post({"model": "demo", "prompt": "x"}, "/v1/tokenize"))
    await begun.wait()
    asking.cancel()
    await asyncio.wait_for(worker.abandoned.wait(), 10)
