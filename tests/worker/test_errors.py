"""What a client gets for a request that cannot be answered: the right status, OpenAI's shape, words to act on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from server.protocol.errors import bad_request
from server.protocol.openai import ErrorResponse
from worker.engine.protocol import EngineError, EngineFailure, EngineOutput, EngineOverloaded

CHAT = "/v1/chat/completions"


def error_of(response: Any, status: int) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    return ErrorResponse.model_validate_json(response.content).error


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"n": 17}, "n", "less than or equal to 16"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"stop": ""}, "stop", "at least 1 character"),
        ({"stop": ["a", 5]}, "stop[1]", "valid string"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"top_logprobs": 2}, None, "needs logprobs"),
        ({"stream_options": {"include_usage": True}}, None, "set stream to true"),
        ({"logit_bias": {"7": 101}}, "logit_bias.7", "less than or equal to 100"),
        ({"logit_bias": {"nine": 1}}, "logit_bias.nine", "valid integer"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "does not exist"),
        ({"stop_token_ids": [99999]}, "stop_token_ids", "does not exist"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens", "more than the 3"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"functions": [{}]}, "functions", "not supported"),
        ({"response_format": {"type": "xml"}}, "response_format", "'json_schema'"),
        ({"modalities": ["text", "audio"]}, "modalities", "not supported"),
        ({"guided_choice": []}, "guided_choice", "at least 1"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "not supported"),
        ({"chat_template": "{{ 1 }}"}, "chat_template", "not supported"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hello"}, "messages", "valid array"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "'system'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "messages[0].content[0]", "image_url"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "required"),
        (
            {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0]",
            "user messages only",
        ),
        ({"model": None}, "model", "valid string"),
    ],
)
async def test_a_field_that_cannot_be_is_named(
    stage: Any, fields: dict[str, Any], param: str | None, words: str
) -> None:
    worker = await stage()
    error = error_of(await worker.chat(**fields), 400)
    assert error.type == "invalid_request_error"
    assert error.param == param
    assert words in error.message
    assert worker.engine.requests == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": [1, 2]}, "prompt[0]"),
        ({"prompt": ["a"] * 33}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
async def test_a_completions_field_that_cannot_be_is_named(stage: Any, fields: dict[str, Any], param: str) -> None:
    worker = await stage()
    response = await worker.client.post("/v1/completions", json={"model": "tiny", "prompt": "x", **fields})
    assert error_of(response, 400).param == param


async def test_values_that_ask_for_nothing_and_unknown_fields_pass(stage: Any) -> None:
    worker = await stage()
    fields = {
        "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"], "user": "u",
        "n": None, "stop": None, "stop_token_ids": None, "metadata": {"a": 1}, "service_tier": "auto", "store": False,
    }  # fmt: skip
    assert (await worker.chat(**fields)).status_code == 200


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b'{"a": "\\ud800"}', b"[" * 5000, b"[]", b"null", b""])
async def test_a_body_that_is_no_json_object_is_400(stage: Any, body: bytes) -> None:
    worker = await stage()
    error_of(await worker.client.post(CHAT, content=body), 400)


async def test_another_model_is_404_and_so_is_another_path(stage: Any) -> None:
    worker = await stage()
    assert error_of(await worker.chat(model="gpt-4o"), 404).code == "model_not_found"
    assert error_of(await worker.client.get("/v1/models/gpt-4o"), 404).code == "model_not_found"
    assert error_of(await worker.client.get("/v2"), 404).code == "not_found"
    assert error_of(await worker.client.post("/v1/chat/completions/"), 404).code == "not_found"
    assert error_of(await worker.client.get(CHAT), 405).code == "method_not_allowed"


async def test_a_prompt_beyond_the_context_is_400_with_the_numbers(stage: Any, props: Any) -> None:
    worker = await stage()
    error = error_of(await worker.chat("x" * 3000), 400)
    assert (error.code, error.param) == ("context_length_exceeded", "messages")
    assert "2048" in error.message and "30" in error.message
    content = [props.picture_part(), {"type": "text", "text": "what?"}]
    error = error_of(await worker.chat(content, max_tokens=2040), 400)
    picture = worker.service.intake._preprocessor.geometry.layout(60, 40).tokens
    assert f"{picture} are the images'" in error.message and "2040 were asked" in error.message
    body = {"model": "tiny", "prompt": "y" * 2048, "max_tokens": 1}
    assert error_of(await worker.client.post("/v1/completions", json=body), 400).param == "prompt"


async def test_a_body_over_the_cap_is_413_whatever_its_header_says(stage: Any) -> None:
    worker = await stage(max_body_bytes=10_000)
    assert error_of(await worker.chat("x" * 20_000), 413).code == "request_too_large"

    async def unannounced() -> Any:
        for _ in range(20):
            yield b" " * 1000

    assert error_of(await worker.client.post(CHAT, content=unannounced()), 413).code == "request_too_large"
    assert (await worker.chat("short")).status_code == 200


async def test_a_body_that_does_not_arrive_is_408(stage: Any) -> None:
    worker = await stage(body_seconds=0.05)

    async def stalling() -> Any:
        yield b"{"
        await asyncio.sleep(0.5)

    assert error_of(await worker.client.post(CHAT, content=stalling()), 408).code == "timeout"


async def test_headers_over_the_cap_are_refused_and_endless_ones_cut_off(stage: Any) -> None:
    worker = await stage()
    error_of(await worker.client.get("/v1/models", headers={"x-padding": "p" * 40_000}), 431)
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    writer.write(b"GET /v1/models HTTP/1.1\r\nx-padding: ")
    try:
        for _ in range(40):
            writer.write(b"p" * 10_000)
            await writer.drain()
    except ConnectionError:
        pass  # cut off while we were still writing: what the test wants
    try:
        assert b"400" in (await reader.read(64) or b"400")
    except ConnectionError:
        pass  # cut off before the answer could be read
    writer.close()
    assert (await worker.client.get("/v1/models")).status_code == 200


async def test_keys_are_asked_for_everywhere_but_at_health_and_metrics(stage: Any) -> None:
    worker = await stage(api_keys=("alpha", "beta"), worker_secret="gamma")
    for path in ("/v1/models", "/openapi.json", "/nothing", "/health", "//health/live", "/metrics/"):
        assert error_of(await worker.client.get(path), 401).code == "invalid_api_key"
    error_of(await worker.chat(), 401)
    for header in ("Bearer wrong", "Bearer", "alpha", "Basic alpha", "Bearer alpha beta"):
        error_of(await worker.client.get("/v1/models", headers={"Authorization": header}), 401)
    for key in ("alpha", "beta", "gamma"):
        headers = {"Authorization": f"Bearer {key}"}
        assert (await worker.client.get("/v1/models", headers=headers)).status_code == 200
    for path in ("/health/live", "/health/ready", "/metrics"):
        assert (await worker.client.get(path)).status_code == 200


async def test_a_good_request_id_is_kept_and_a_bad_one_replaced(stage: Any) -> None:
    worker = await stage()
    sent = await worker.client.get("/v1/models", headers={"X-Request-Id": "trace-42"})
    assert sent.headers["x-request-id"] == "trace-42"
    for bad in ("a b", "x" * 129, "a/b", ""):
        given = (await worker.client.get("/nope", headers={"X-Request-Id": bad})).headers["x-request-id"]
        assert given != bad and len(given) == 32


async def test_a_full_engine_is_429_with_retry_after_streamed_or_not(stage: Any) -> None:
    worker = await stage(lambda request: [EngineOverloaded("the waiting queue is full (256 requests)", 7)])
    for stream in (False, True):
        response = await worker.chat(stream=stream)
        assert "queue is full" in error_of(response, 429).message
        assert response.headers["retry-after"] == "7"


async def test_what_the_engine_refuses_is_400_and_what_fails_under_way_is_500(stage: Any) -> None:
    refusing = await stage(lambda request: [EngineError("the prompt does not fit into the KV cache of 64 tokens")])
    assert "64 tokens" in error_of(await refusing.chat(), 400).message
    failing = await stage(lambda request: [EngineOutput(70), EngineError("the engine failed in a step")])
    assert error_of(await failing.chat(), 500).code == "engine_error"


@pytest.mark.parametrize("drawn", [0, 1])
async def test_a_failure_by_no_fault_of_the_request_is_503_so_that_another_worker_is_asked(
    stage: Any, drawn: int
) -> None:
    failure = EngineFailure("the engine failed; send it again")
    worker = await stage(lambda request: [EngineOutput(70)] * drawn + [failure])
    response = await worker.chat()
    error = error_of(response, 503)
    assert (error.type, error.code) == ("server_error", "engine_error")
    assert "send it again" in error.message
    assert response.headers["retry-after"]
    if not drawn:
        error_of(await worker.chat(stream=True), 503)


async def test_an_unforeseen_failure_tells_the_request_id_and_nothing_else(stage: Any) -> None:
    worker = await stage(lambda request: [RuntimeError("secret at 0x7f00dead")])
    response = await worker.chat()
    error = error_of(response, 500)
    assert response.headers["x-request-id"] in error.message
    assert "secret" not in response.text and "0x7f" not in response.text


async def test_an_error_within_a_stream_is_its_last_event(stage: Any, props: Any) -> None:
    for failure, words in (
        (EngineError("the engine failed in a step"), "failed in a step"),
        (RuntimeError("0x7f"), "Internal"),
    ):
        worker = await stage(lambda request, failure=failure: [EngineOutput(70), failure])
        response = await worker.chat(stream=True)
        assert response.status_code == 200
        events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        error = ErrorResponse.model_validate_json(events[-1]).error
        assert words in error.message and "0x7f" not in response.text
        assert json.loads(events[-2])["choices"]


async def test_an_engine_that_stops_ends_answers_with_503(stage: Any) -> None:
    worker = await stage(lambda request: [EngineOutput(70), EngineOutput(None, finish_reason="abort")])
    assert error_of(await worker.chat(), 503).code == "unavailable"


async def test_an_answer_that_takes_too_long_is_504_and_cancelled(stage: Any, props: Any) -> None:
    engine = props.engine(props.say("never"), hold=asyncio.Event())
    worker = await stage(engine=engine, request_seconds=0.05)
    assert error_of(await worker.chat(), 504).code == "deadline_exceeded"
    assert engine.cancelled == [engine.requests[0].id]


async def test_beyond_the_requests_in_hand_new_ones_are_429(stage: Any, props: Any) -> None:
    engine = props.engine(props.say("slow"), hold=asyncio.Event())
    worker = await stage(engine=engine, max_requests=1)
    first = asyncio.create_task(worker.chat())
    await engine.started.wait()
    assert error_of(await worker.chat(), 429).code == "overloaded"
    assert b'requests_in_hand{model_name="tiny"} 1.0' in (await worker.client.get("/metrics")).content
    engine.hold.set()
    assert (await first).status_code == 200
    assert (await worker.chat()).status_code == 200


async def test_a_dead_engine_shows_at_health(stage: Any) -> None:
    worker = await stage()
    worker.engine.healthy = False
    assert (await worker.client.get("/health/live")).status_code == 503
    assert (await worker.client.get("/health/ready")).json()["status"] == "failed"


class Pictures:
    """Stands for the fetcher."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    async def fetch(self, url: str) -> bytes:
        if url not in self.files:
            raise bad_request("The picture's URL is not accepted.", code="image_url_not_allowed")
        return self.files[url]


async def test_pictures_of_every_accepted_format_and_source_reach_the_engine(stage: Any, props: Any) -> None:
    remote = Pictures({"https://pictures.test/a.png": props.encode_picture(color="red")})
    worker = await stage(source=remote)
    parts: list[Any] = [
        {"type": "image_url", "image_url": {"url": props.data_url(props.encode_picture(kind), kind.lower())}}
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")
    ]
    parts.append({"type": "image_url", "image_url": {"url": "https://pictures.test/a.png", "detail": "low"}})
    parts.append({"type": "image_url", "image_url": props.data_url(props.encode_picture())})
    answer = await worker.chat([*parts, {"type": "text", "text": "Which is red?"}])
    assert answer.status_code == 200, answer.text
    request = worker.engine.requests[0]
    assert len(request.images) == 7
    expected = sum(image.layout.tokens for image in request.images)
    assert sum(token == 259 for token in request.token_ids) == expected
    assert answer.json()["usage"]["prompt_tokens_details"]["image_tokens"] == expected
    assert request.images[5].pixels[0, 0].mean() > request.images[5].pixels[0, 2].mean()  # red, so it is that picture


async def test_pictures_in_earlier_turns_keep_their_order(stage: Any, props: Any) -> None:
    worker = await stage()
    colors = ("red", "green", "blue")
    messages = []
    for color in colors:
        messages.append({"role": "user", "content": [props.picture_part(color=color), {"type": "text", "text": "?"}]})
        messages.append({"role": "assistant", "content": "yes"})
    body = {"model": "tiny", "messages": messages[:-1]}
    assert (await worker.client.post(CHAT, json=body)).status_code == 200
    brightest = [int(image.pixels[0].mean((1, 2)).argmax()) for image in worker.engine.requests[0].images]
    assert brightest == [0, 1, 2]


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("data:image/png;base64,!!!!", 400, "invalid_image_url"),
        ("data:image/png;base64,aGVsbG8=", 400, "invalid_image"),
        ("data:image/svg+xml;base64,PHN2Zy8+", 400, "invalid_image"),
        ("data:image/png,raw", 400, "invalid_image_url"),
        ("data:text/plain;base64,aGk=", 400, "invalid_image_url"),
        ("file:///etc/passwd", 400, "invalid_image_url"),
        ("/etc/passwd", 400, "invalid_image_url"),
        ("ftp://pictures.test/a.png", 400, "invalid_image_url"),
        ("http://127.0.0.1/a.png", 400, "image_url_not_allowed"),
        ("", 400, "invalid_image_url"),
    ],
)
async def test_a_picture_that_cannot_be_read_is_named(stage: Any, url: str, status: int, code: str) -> None:
    worker = await stage()
    content = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": url}}]
    error = error_of(await worker.chat(content), status)
    assert (error.code, error.param) == (code, "messages[0].content[1].image_url")
    assert worker.engine.requests == []


async def test_a_truncated_picture_is_400(stage: Any, props: Any) -> None:
    worker = await stage()
    data = props.encode_picture("JPEG", size=(400, 400))
    part = {"type": "image_url", "image_url": {"url": props.data_url(data[: len(data) // 2])}}
    assert error_of(await worker.chat([part]), 400).code == "invalid_image"


async def test_limits_on_pictures_are_held_before_any_is_decoded(stage: Any, props: Any) -> None:
    part = props.picture_part(size=(100, 100))
    many = await stage(max_images=2)
    assert error_of(await many.chat([part] * 3), 400).code == "too_many_images"
    heavy = await stage(max_image_bytes=64)
    assert error_of(await heavy.chat([part]), 413).param == "messages[0].content[0].image_url"
    large = await stage(max_image_pixels=9_999)
    assert "10000 pixels" in error_of(await large.chat([part]), 400).message
    together = await stage(max_request_pixels=15_000)
    assert error_of(await together.chat([part] * 2), 400).code == "too_many_pixels"
    held = await stage(max_images_held=1)
    assert error_of(await held.chat([part] * 2), 429).code == "overloaded"
    assert (await held.chat([part])).status_code == 200
    for worker in (many, heavy, large, together):
        assert worker.engine.requests == []


async def test_placeholder_text_is_text_and_no_picture(stage: Any) -> None:
    worker = await stage()
    assert (await worker.chat("<image> describe the picture <|im_end|>")).status_code == 200
    assert 259 not in worker.engine.requests[0].token_ids
