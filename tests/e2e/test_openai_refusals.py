"""What cannot be answered, as the `openai` package tells its users: its own exceptions, with status, code and place."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

pytestmark = pytest.mark.timeout(400)  # the first test waits for the system


def test_a_picture_that_is_not_there_is_the_clients_error(ask: Any, picture_server: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask("what is it?", {"type": "image_url", "image_url": {"url": f"{picture_server}/none.png"}})
    assert caught.value.param == "messages[0].content[1].image_url"
    assert "404" in caught.value.message


@pytest.mark.parametrize(
    ("expected", "status", "code", "changes"),
    [
        (openai.BadRequestError, 400, None, {"temperature": 9}),
        (openai.BadRequestError, 400, "unsupported_parameter", {"audio": {"voice": "any"}}),
        (openai.AuthenticationError, 401, "invalid_api_key", {"key": "nobodys-key"}),
        (openai.AuthenticationError, 401, "api_key_expired", {"key": "key-of-yesterday"}),
        (openai.PermissionDeniedError, 403, "model_not_allowed", {"key": "key-of-another-model"}),
        (openai.NotFoundError, 404, "model_not_found", {"model": "gpt-4o"}),
        (openai.NotFoundError, 404, "version_not_found", {"extra_headers": {"X-Model-Version": "another"}}),
        (openai.APIStatusError, 413, "request_too_large", {"user": "x" * 2_100_000}),
        (openai.InternalServerError, 504, "deadline_exceeded", {"extra_headers": {"X-Request-Timeout": ".000001"}}),
    ],
)
async def test_refusals_are_the_sdks_exceptions_whichever_client_asks(
    client: OpenAI,
    async_client: AsyncOpenAI,
    running: Any,
    expected: type[openai.APIStatusError],
    status: int,
    code: str | None,
    changes: dict[str, Any],
) -> None:
    key = changes.get("key", running.key)
    asked = {"model": running.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    asked |= {name: value for name, value in changes.items() if name != "key"}
    create: Any = client.with_options(api_key=key).chat.completions.create
    create_async: Any = async_client.with_options(api_key=key).chat.completions.create
    for stream in (False, True):
        for asking in (create_async(**asked, stream=stream), asyncio.to_thread(create, **asked, stream=stream)):
            with pytest.raises(expected) as caught:
                await asking
            assert (caught.value.status_code, caught.value.code) == (status, code)
            assert caught.value.request_id


def test_another_model_is_not_found(ask: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask("hi", model="gpt-4o")
    assert caught.value.code == "model_not_found"
    assert "gpt-4o" in caught.value.message


@pytest.mark.parametrize("broken", ["cut", "no picture", "tiff", "svg", "no base64"])
def test_a_picture_that_cannot_be_read_is_named(ask: Any, pictures: Any, broken: str) -> None:
    urls = {
        "cut": pictures.data_url(3, "JPEG", quality=95)[: -4 * 150],
        "no picture": "data:image/png;base64,aGVsbG8=",
        "tiff": pictures.data_url(3, "TIFF"),
        "svg": "data:image/svg+xml;base64,PHN2Zy8+",
        "no base64": "data:image/png;base64,!!!!",
    }
    with pytest.raises(openai.BadRequestError) as caught:
        ask("what?", pictures.part(1), {"type": "image_url", "image_url": {"url": urls[broken]}})
    assert caught.value.param == "messages[0].content[2].image_url"
    assert caught.value.type == "invalid_request_error"
    if broken == "tiff":
        assert "PNG" in caught.value.message and "JPEG" in caught.value.message


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(ask: Any, pictures: Any) -> None:
    beyond = ask("x").usage.prompt_tokens - 1 + 3000
    with pytest.raises(openai.BadRequestError) as caught:
        ask("x" * 3000)
    assert caught.value.code == "context_length_exceeded"
    assert "2048" in caught.value.message and str(beyond) in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        ask(pictures.part(1), "what?", max_tokens=2040)
    details = ask(pictures.part(1), "what?").usage.prompt_tokens_details.to_dict()
    assert str(details["image_tokens"]) in caught.value.message
    assert "2040" in caught.value.message
    assert ask("x" * 1500).choices


def test_more_pictures_than_the_model_takes_are_refused(ask: Any, pictures: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(*[pictures.part(1)] * 17)
    assert "16" in caught.value.message


@pytest.mark.parametrize("key", ["nobodys-key", "a-clients-ke", "the-workers-secret"])
def test_a_wrong_key_is_refused(client: OpenAI, running: Any, key: str) -> None:
    stranger = client.with_options(api_key=key)
    for call in (
        lambda: stranger.models.list(),
        lambda: stranger.chat.completions.create(model=running.model, messages=[{"role": "user", "content": "hi"}]),
        lambda: stranger.completions.create(model=running.model, prompt="hi"),
    ):
        with pytest.raises(openai.AuthenticationError) as caught:
            call()
        assert caught.value.code == "invalid_api_key"
        assert key not in caught.value.message


def test_a_body_beyond_the_limit_is_413(ask: Any) -> None:
    for size in (2_100_000, 20_000_000):
        with pytest.raises(openai.APIStatusError) as caught:
            ask("x" * size)
        assert caught.value.status_code == 413
        assert caught.value.body["code"] == "request_too_large"
    assert ask("still there?").choices
