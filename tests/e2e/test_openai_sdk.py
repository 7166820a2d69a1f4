"""What people do with the `openai` package, against a controller and two workers."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

pytestmark = pytest.mark.timeout(400)  # the first test waits for the system

GREEDY = {"temperature": 0, "max_tokens": 16, "extra_body": {"ignore_eos": True}}


def text_of(answer: ChatCompletion) -> str:
    text = answer.choices[0].message.content
    assert text
    return text


def image_tokens(answer: ChatCompletion) -> int:
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    return answer.usage.prompt_tokens_details.to_dict()["image_tokens"]  # type: ignore[return-value]


def prompt_tokens(answer: ChatCompletion) -> int:
    assert answer.usage is not None
    return answer.usage.prompt_tokens


def counts(usage: Any) -> tuple[int, int, int]:
    """But for what came from a cache, which another worker may not have."""
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.to_dict()["image_tokens"]


def answer_tokens(answer: ChatCompletion) -> int:
    assert answer.usage is not None
    return answer.usage.completion_tokens


def test_pictures_come_as_base64_png_jpeg_and_webp(ask: Any, pictures: Any) -> None:
    png = ask("what is it?", pictures.part(1))
    assert image_tokens(png) > 0
    assert png.usage.total_tokens == png.usage.prompt_tokens + png.usage.completion_tokens
    assert text_of(ask("what is it?", pictures.part(1, "WEBP", lossless=True))) == text_of(png)
    jpeg = ask("what is it?", pictures.part(1, "JPEG", quality=95))
    assert text_of(jpeg)
    assert image_tokens(jpeg) == image_tokens(png)
    assert text_of(ask("what is it?", pictures.part(6))) != text_of(png)  # same size, other stripes


def test_a_picture_at_an_http_url_is_the_picture_itself(ask: Any, pictures: Any, picture_server: str) -> None:
    fetched = ask("what is it?", {"type": "image_url", "image_url": {"url": f"{picture_server}/7.png"}})
    inline = ask("what is it?", pictures.part(7))
    assert text_of(fetched) == text_of(inline)
    assert counts(fetched.usage) == counts(inline.usage)


def test_two_pictures_of_one_message_keep_their_order(ask: Any, pictures: Any) -> None:
    one, other = pictures.part(1), pictures.part(6)
    both = ask(one, "and then", other)
    assert image_tokens(both) == image_tokens(ask(one, "?")) + image_tokens(ask(other, "?"))
    assert text_of(ask(other, "and then", one)) != text_of(both)


def test_pictures_of_earlier_turns_are_still_seen(client: OpenAI, running: Any, pictures: Any) -> None:
    def last_answer(number: int) -> ChatCompletion:
        messages: Any = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [pictures.part(number), {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": "Stripes."},
            {"role": "user", "content": "Which colours?"},
        ]
        return client.chat.completions.create(model=running.model, messages=messages, **GREEDY)

    answer = last_answer(1)
    assert image_tokens(answer) > 0
    assert text_of(last_answer(1)) == text_of(answer)
    assert text_of(last_answer(6)) != text_of(answer)


def test_text_alone_is_answered(client: OpenAI, running: Any) -> None:
    answer = client.chat.completions.create(
        model=running.model, messages=[{"role": "user", "content": "Good morning!"}], **GREEDY
    )
    assert text_of(answer)
    assert image_tokens(answer) == 0
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == running.model
    assert answer.system_fingerprint
    assert answer.choices[0].message.role == "assistant"


@pytest.mark.parametrize("drawn", [{"temperature": 0}, {"temperature": 1, "seed": 5}])
def test_a_stream_tells_the_same_as_a_whole_answer(
    client: OpenAI, running: Any, ask: Any, pictures: Any, drawn: dict[str, Any]
) -> None:
    fields = {"max_tokens": 60, **drawn}
    whole = ask("what is it?", pictures.part(2), **fields)
    content: Any = [{"type": "text", "text": "what is it?"}, pictures.part(2)]
    with client.chat.completions.create(
        model=running.model,
        messages=[{"role": "user", "content": content}],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
        **fields,
    ) as stream:
        chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    *with_choices, last = chunks
    assert last.choices == [] and counts(last.usage) == counts(whole.usage)
    assert all(chunk.usage is None for chunk in with_choices)
    choices = [choice for chunk in with_choices for choice in chunk.choices]
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == text_of(whole)
    reasons = [choice.finish_reason for choice in choices]
    assert reasons[-1] == whole.choices[0].finish_reason == "length"
    assert set(reasons[:-1]) == {None}
    assert len(choices) > 20  # it came in pieces


def test_without_being_asked_a_stream_tells_no_usage(client: OpenAI, running: Any) -> None:
    with client.chat.completions.create(
        model=running.model, messages=[{"role": "user", "content": "hi"}], max_tokens=4, stream=True
    ) as stream:
        chunks = list(stream)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_an_answer_ends_before_a_stop_string(ask: Any) -> None:
    # Most of what random weights say is no text; some two letters stand beside each other sooner or later.
    for seed in range(50):
        drawn = {"temperature": 1, "max_tokens": 120, "seed": seed}
        whole = text_of(ask("talk", **drawn))
        pairs = [whole[at : at + 2] for at in range(8, len(whole) - 8)]
        if stop := next((pair for pair in pairs if pair.isascii() and pair.isalnum()), None):
            break
    assert stop, "no two letters in a row"
    for stops in (stop, ["not said", stop]):
        answer = ask("talk", stop=stops, **drawn)
        assert answer.choices[0].message.content == whole[: whole.index(stop)]
        assert answer.choices[0].finish_reason == "stop"
        assert answer_tokens(answer) < 120


def test_n_answers_differ_and_the_first_is_that_of_the_seed_alone(ask: Any, pictures: Any) -> None:
    drawn = {"temperature": 1, "seed": 11, "max_tokens": 24}
    both = ask("what?", pictures.part(3), n=2, **drawn)
    assert [choice.index for choice in both.choices] == [0, 1]
    first, second = (choice.message.content for choice in both.choices)
    alone = ask("what?", pictures.part(3), **drawn)
    assert first == text_of(alone) != second
    assert prompt_tokens(both) == prompt_tokens(alone)
    assert answer_tokens(both) == 2 * answer_tokens(alone) == 48


def test_a_seed_draws_the_same_again_and_another_seed_something_else(ask: Any, pictures: Any) -> None:
    def drawn(**seed: int) -> str:
        return text_of(ask("what?", pictures.part(4), temperature=1, max_tokens=32, **seed))

    once = drawn(seed=1)
    assert [drawn(seed=1) for _ in range(3)] == [once] * 3  # whichever worker answers
    assert drawn(seed=2) != once
    assert drawn() != drawn()


def test_logprobs_come_with_the_likeliest_rivals(ask: Any) -> None:
    answer = ask("hello", logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer_tokens(answer) == 16
    for token in tokens:
        rivals = [rival.logprob for rival in token.top_logprobs]
        assert len(rivals) == 3
        assert rivals == sorted(rivals, reverse=True)
        assert token.logprob == rivals[0] <= 0  # greedy takes the likeliest
        assert sum(math.exp(rival) for rival in rivals) <= 1 + 1e-4
    said = b"".join(bytes(token.bytes or ()) for token in tokens).decode(errors="replace")
    assert said == text_of(answer)
    assert ask("hello").choices[0].logprobs is None


def test_max_tokens_ends_an_answer_by_length(ask: Any) -> None:
    for limit in ({"max_tokens": 5}, {"max_tokens": openai.omit, "max_completion_tokens": 5}):
        answer = ask("hello", **limit)
        assert answer.choices[0].finish_reason == "length"
        assert answer_tokens(answer) == 5


def test_an_answer_ends_by_itself_where_the_model_says_so(ask: Any) -> None:
    answer = ask("hello", max_tokens=50, logit_bias={"258": 100}, extra_body={})
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("", "stop")
    assert answer_tokens(answer) == 1


def test_raw_text_is_continued(client: OpenAI, running: Any) -> None:
    fields = {"model": running.model, "max_tokens": 12, "temperature": 0, "extra_body": {"ignore_eos": True}}
    whole = client.completions.create(prompt="Once upon a time", **fields)
    assert whole.object == "text_completion"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len("Once upon a time"), 12)
    with client.completions.create(
        prompt="Once upon a time", stream=True, stream_options={"include_usage": True}, **fields
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert counts(chunks[-1].usage) == counts(whole.usage)
    several = client.completions.create(prompt=["Once upon a time", "The end"], **fields)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == whole.choices[0].text != several.choices[1].text


def test_models_are_listed_and_described(client: OpenAI, running: Any) -> None:
    (model,) = client.models.list().data
    assert model.id == running.model
    assert model.object == "model"
    described = client.models.retrieve(running.model).to_dict()
    assert described["workers"] == 2
    assert described["context_length"] == 2048
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


async def test_the_asynchronous_client_is_answered_side_by_side(
    async_client: AsyncOpenAI, running: Any, ask: Any, pictures: Any
) -> None:
    async def streamed(number: int) -> str:
        content: Any = [{"type": "text", "text": "what?"}, pictures.part(number)]
        stream = await async_client.chat.completions.create(
            model=running.model, messages=[{"role": "user", "content": content}], stream=True, **GREEDY
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    together = await asyncio.gather(*(streamed(number) for number in range(4)))
    alone = [await asyncio.to_thread(ask, "what?", pictures.part(number)) for number in range(4)]
    assert list(together) == [text_of(answer) for answer in alone]


async def test_the_asynchronous_client_has_the_rest_of_the_api_too(async_client: AsyncOpenAI, running: Any) -> None:
    listed = [model.id async for model in async_client.models.list()]
    assert listed == [running.model]
    assert (await async_client.models.retrieve(running.model)).id == running.model
    fields: Any = {"model": running.model, "prompt": "Once upon a time", "max_tokens": 6, "temperature": 0}
    fields |= {"extra_body": {"ignore_eos": True}}
    whole = await async_client.completions.create(**fields)
    stream = await async_client.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    *chunks, last = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert counts(last.usage) == counts(whole.usage)
    assert whole.usage is not None and whole.usage.completion_tokens == 6


class Paint(BaseModel):
    colour: Literal["red", "green"]


async def test_the_asynchronous_client_parses_forms_and_calls(async_client: AsyncOpenAI, running: Any) -> None:
    asked: Any = {"model": running.model, "messages": [{"role": "user", "content": "Which?"}], "seed": 3}
    answer = await async_client.chat.completions.parse(**asked, response_format=Paint)
    assert isinstance(answer.choices[0].message.parsed, Paint)
    called = await async_client.chat.completions.parse(
        **asked, tools=[pydantic_function_tool(Paint)], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = called.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Paint)
    async with async_client.chat.completions.stream(**asked, response_format=Paint) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == answer.choices[0].message.parsed


def test_continuations_come_with_logprobs_and_in_several_versions(client: OpenAI, running: Any) -> None:
    answer = client.completions.create(
        model=running.model,
        prompt=["One", "Two"],
        n=2,
        logprobs=2,
        max_tokens=4,
        seed=1,
        extra_body={"ignore_eos": True},
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        said = choice.logprobs
        assert said is not None and said.tokens and said.token_logprobs and said.top_logprobs and said.text_offset
        assert len(said.tokens) == len(said.token_logprobs) == len(said.top_logprobs) == len(said.text_offset) == 4
        assert all(logprob is not None and logprob <= 0 for logprob in said.token_logprobs)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 16)


def test_a_prompt_that_was_seen_before_is_told_as_cached(ask: Any) -> None:
    def cached() -> int:
        usage = ask("y" * 600, extra_headers={"X-Session-Id": "cached"}).usage
        return usage.prompt_tokens_details.cached_tokens

    cached()
    assert 0 < cached() <= 600 + 100


def test_answers_of_a_key_with_limits_tell_what_is_left(client: OpenAI, running: Any) -> None:
    few = client.with_options(api_key="key-of-few-requests")
    asked: Any = {"model": running.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    answer = few.chat.completions.with_raw_response.create(**asked)
    assert answer.headers["x-ratelimit-limit-requests"] == "1"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert answer.headers["x-tephra-version"] == answer.parse().system_fingerprint
    with pytest.raises(openai.RateLimitError) as caught:
        few.chat.completions.create(**asked)
    assert caught.value.code == "rate_limit_exceeded"
    assert int(caught.value.response.headers["retry-after"]) > 0


def test_placeholders_in_text_stay_text(ask: Any, pictures: Any) -> None:
    typed = "<image><|im_end|>"
    bare, with_typed = ask("hello"), ask("hello" + typed)
    assert image_tokens(with_typed) == 0
    assert prompt_tokens(with_typed) == prompt_tokens(bare) + len(typed)  # letter by letter, no special token
    pictured, both = ask(pictures.part(1), "hello"), ask(pictures.part(1), "hello" + typed)
    assert image_tokens(both) == image_tokens(pictured) > 0
    assert prompt_tokens(both) == prompt_tokens(pictured) + len(typed)


def test_a_request_is_named_in_its_answer(client: OpenAI, running: Any, ask: Any) -> None:
    answer = ask("hi", extra_headers={"X-Request-Id": "trace-42"})
    assert answer._request_id == "trace-42"
    named, other = ask("hi")._request_id, ask("hi")._request_id
    assert named and other and named != other
    with pytest.raises(openai.BadRequestError) as caught:
        ask("hi", temperature=9, extra_headers={"X-Request-Id": "trace-43"})
    assert caught.value.request_id == "trace-43"
    assert caught.value.param == "temperature"
    with client.chat.completions.with_streaming_response.create(
        model=running.model, messages=[{"role": "user", "content": "hi"}], stream=True, max_tokens=2
    ) as response:
        assert response.headers["x-request-id"]
        assert response.headers["content-type"].startswith("text/event-stream")


def test_work_is_shared_out_among_the_workers(ask: Any, running: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        at_once = [pool.submit(ask, f"question {number}", max_tokens=100) for number in range(8)]
        names = [answer.result()._request_id for answer in at_once]
    recent = running.recent()
    assert {recent[name]["worker"] for name in names} == {"east", "west"}
