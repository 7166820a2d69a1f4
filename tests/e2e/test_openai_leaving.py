"""Clients that do not wait: whoever leaves before the answer's end, and by whichever way, frees the worker."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

pytestmark = pytest.mark.timeout(400)  # the first test waits for the system


def test_a_stream_that_is_closed_early_frees_the_worker(running: Any, client: OpenAI, eventually: Any) -> None:
    stream = client.chat.completions.create(**_long(running), stream=True)
    assert next(iter(stream)).choices
    stream.close()
    eventually(running.idle, "nothing is left of it")


async def test_an_asynchronous_stream_that_is_closed_early_frees_the_worker(
    running: Any, async_client: AsyncOpenAI, eventually: Any
) -> None:
    stream = await async_client.chat.completions.create(**_long(running), stream=True)
    async for chunk in stream:
        assert chunk.choices
        break
    await stream.close()
    await asyncio.to_thread(eventually, running.idle, "nothing is left of it")


async def test_a_client_whose_patience_ends_frees_the_worker(
    running: Any, client: OpenAI, async_client: AsyncOpenAI, eventually: Any
) -> None:
    with pytest.raises(openai.APITimeoutError):
        await asyncio.to_thread(client.with_options(timeout=0.2).chat.completions.create, **_long(running))
    with pytest.raises(openai.APITimeoutError):
        await async_client.with_options(timeout=0.2).chat.completions.create(**_long(running))
    await asyncio.to_thread(eventually, running.idle, "nothing is left of them")


@pytest.mark.parametrize("stream", [False, True])
def test_a_time_that_the_client_names_ends_the_answer_with_an_error(running: Any, client: OpenAI, stream: bool) -> None:
    with pytest.raises(openai.APIError) as caught:
        answer = client.chat.completions.create(
            **_long(running), stream=stream, extra_headers={"X-Request-Timeout": "0.2"}
        )
        list(answer)
    assert caught.value.code == "deadline_exceeded"
    assert stream or isinstance(caught.value, openai.InternalServerError)


def _long(running: Any) -> dict[str, Any]:
    """An answer that takes seconds."""
    messages = [{"role": "user", "content": "talk"}]
    return {"model": running.model, "messages": messages, "max_tokens": 1900, "extra_body": {"ignore_eos": True}}
