"""A request once through: what comes back, what goes to the worker, and what is refused before it gets there."""

from __future__ import annotations

import asyncio
import json

import orjson


async def test_a_whole_answer_comes_back_as_the_worker_gave_it(client, start_worker):
    worker = await start_worker("w1", client)
    status, body, headers = await client.chat("hi", headers={"x-request-id": "my-id.1"})
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "hello"
    assert headers["x-request-id"] == "my-id.1"
    assert worker.headers[0]["X-Request-Id"] == "my-id.1"
    assert worker.headers[0]["Authorization"] == "Bearer the-workers-secret"


async def test_a_stream_comes_back_event_by_event_with_its_end_mark(client, start_worker):
    await start_worker("w1", client)
    events = await client.stream("hi")
    assert [json.loads(event)["choices"][0]["delta"]["content"] for event in events[:3]] == ["one ", "two ", "three"]
    assert events[-1] == "[DONE]"


async def test_text_completions_pass_through(client, start_worker):
    worker = await start_worker("w1", client)
    status, _, _ = await client.post({"model": "demo", "prompt": "Once"}, "/v1/completions")
    assert status == 200
    assert worker.bodies == [{"model": "demo", "prompt": "Once"}]


async def test_request_ids_that_are_not_plain_are_replaced(client, start_worker):
    await start_worker("w1", client)
    _, _, headers = await client.chat("hi", headers={"x-request-id": "x" * 65})
    assert len(headers["x-request-id"]) == 32


async def test_a_client_key_is_asked_for_and_does_not_reach_the_worker(start_controller, start_worker):
    client = await start_controller(api_keys=("first", "second"))
    worker = await start_worker("w1", client)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic second"}):
        status, body, answer = await client.chat("hi", headers=headers)
        assert status == 401
        assert body["error"]["code"] == "invalid_api_key"
        assert answer["WWW-Authenticate"] == "Bearer"
        assert "x-request-id" in answer
    for path in ("/v1/models", "/v1/models/demo"):
        assert (await client.get(path))[0] == 401
    status, _, _ = await client.chat("hi", headers={"Authorization": "Bearer second"})
    assert status == 200
    assert [headers["Authorization"] for headers in worker.headers] == ["Bearer the-workers-secret"]


async def test_an_unknown_model_is_404_and_no_worker_at_all_is_503(client, start_worker):
    status, body, headers = await client.chat("hi")
    assert (status, body["error"]["code"]) == (503, "unavailable")
    assert int(headers["Retry-After"]) >= 1
    await start_worker("w1", client)
    status, body, _ = await client.chat("hi", model="other")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert "other" in body["error"]["message"]


NO_REQUESTS = [
    (b"{", "not valid JSON"),
    (b"\xff\xfe", "not valid JSON"),
    (b"[]", "must be a JSON object"),
    (b'{"messages": [{"role": "user", "content": "x"}]}', "model"),
    (b'{"model": 5, "messages": []}', "model"),
    (b'{"model": "demo"}', "messages"),
    (b'{"model": "demo", "messages": []}', "messages"),
    (b'{"model": "demo", "messages": ["hi"]}', "messages[0]"),
    (b'{"model": "demo", "messages": [{"role": "user", "content": 5}]}', "messages[0].content"),
    (b'{"model": "demo", "messages": [{"role": "user", "content": [{"type": "video_url"}]}]}', "content[0].type"),
    (b'{"model": "demo", "messages": [{"role": "user", "content": ["x"]}]}', "content[0].type"),
    (b'{"model": "demo", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "image_url"),
    (b'{"model": "demo", "stream": "yes", "messages": [{"role": "user", "content": "x"}]}', "stream"),
    (b'{"model": "demo", "chat_template": "{{x}}", "messages": [{"role": "user", "content": "x"}]}', "template"),
    (b'{"model": "demo", "a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested deeper"),
    (b'{"model": "demo", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not valid JSON"),
    (b'{"model": "demo", "a": [' + b"0," * 600_000 + b"0]}", "values"),
]


async def test_a_body_that_makes_no_request_is_400_and_reaches_no_worker(client, start_worker):
    worker = await start_worker("w1", client)
    for body, says in NO_REQUESTS:
        async with client.session.post(
            client.url + "/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
        ) as response:
            assert response.status == 400, body[:100]
            error = (await response.json())["error"]
        assert says in error["message"], body[:100]
        assert error["type"] == "invalid_request_error"
    assert worker.bodies == []


async def test_a_body_over_the_cap_is_413_announced_or_not(start_controller, start_worker):
    client = await start_controller(max_body_bytes=10_000)
    worker = await start_worker("w1", client)
    body = orjson.dumps({"model": "demo", "messages": [{"role": "user", "content": "x" * 20_000}]})

    async def unannounced():
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    for data in (body, unannounced()):
        async with client.session.post(
            client.url + "/v1/chat/completions", data=data, headers={"Content-Type": "application/json"}
        ) as response:
            assert response.status == 413
            assert (await response.json())["error"]["code"] == "request_too_large"
    assert worker.bodies == []
    assert client.controller.room.bytes == 0


async def test_a_body_that_never_ends_is_408(start_controller, start_worker):
    client = await start_controller(body_seconds=0.3)
    await start_worker("w1", client)

    async def endless():
        while True:
            yield b" "
            await asyncio.sleep(0.05)

    async with client.session.post(
        client.url + "/v1/chat/completions", data=endless(), headers={"Content-Type": "application/json"}
    ) as response:
        assert response.status == 408


async def test_only_plain_json_is_taken(client, start_worker):
    await start_worker("w1", client)
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "application/json", "Content-Encoding": "gzip"}):
        async with client.session.post(
            client.url + "/v1/chat/completions", data=b"{}", headers=headers, skip_auto_headers=("Content-Encoding",)
        ) as response:
            assert response.status == 415
            assert "error" in await response.json()


async def test_a_full_controller_answers_429(start_controller, start_worker):
    client = await start_controller(max_inflight=0)
    await start_worker("w1", client)
    status, body, headers = await client.chat("hi")
    assert (status, body["error"]["type"]) == (429, "rate_limit_error")
    assert int(headers["Retry-After"]) >= 1


async def test_unknown_paths_and_methods_have_the_same_shape_of_error(client):
    status, body = await client.get("/nothing")
    assert (status, body["error"]["code"]) == (404, "not_found")
    status, body = await client.get("/v1/chat/completions")
    assert (status, body["error"]["code"]) == (405, "method_not_allowed")
    status, body = await client.get("/v1/models/none")
    assert (status, body["error"]["code"]) == (404, "model_not_found")


async def test_models_merge_the_cards_of_their_workers(client, start_worker):
    await start_worker("w1", client)
    await start_worker("w2", client, version="v2", created=2, context_length=2048)
    await start_worker("w3", client, name="text-only", image=None)
    status, body = await client.get("/v1/models")
    assert status == 200
    demo, text = body["data"]
    assert demo["id"] == "demo"
    assert demo["versions"] == ["v2", "v1"]
    assert demo["version"] == "v2"
    assert demo["context_length"] == demo["max_model_len"] == 2048
    assert (demo["capabilities"]["vision"], demo["capabilities"]["max_images"]) == (True, 4)
    assert demo["workers"] == 2
    assert (text["capabilities"]["vision"], text["capabilities"]["max_images"]) == (False, 0)
    assert (await client.get("/v1/models/demo"))[1] == demo


async def test_the_openapi_document_describes_the_generation_routes(client):
    status, document = await client.get("/openapi.json")
    assert status == 200
    operation = document["paths"]["/v1/chat/completions"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
    assert "messages" in document["components"]["schemas"][schema]["properties"]
    assert "/v1/completions" in document["paths"]
    references = {reference.split('"')[0] for reference in json.dumps(document).split('"$ref": "')[1:]}
    components = document["components"]
    assert references <= {f"#/components/{kind}/{name}" for kind in components for name in components[kind]}
