"""Answers of a given form, from a worker whose model is random: what it says obeys the form every time."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from server.protocol.openai import ChatCompletion, ErrorResponse

TEXT = "/v1/completions"


class Cat(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=12)
    lives: int = Field(ge=0, le=9)
    colour: Literal["black", "white", "red"]
    friends: list[Annotated[str, Field(max_length=4)]] = Field(max_length=2)


CAT = {"type": "json_schema", "json_schema": {"name": "cat", "schema": Cat.model_json_schema(), "strict": True}}


def text_of(response: Any) -> str:
    assert response.status_code == 200, response.text
    choice = ChatCompletion.model_validate_json(response.content).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content is not None
    return choice.message.content


def error_of(response: Any) -> Any:
    assert response.status_code == 400, response.text
    return ErrorResponse.model_validate_json(response.content).error


async def test_a_schema_is_obeyed_whatever_is_drawn(random_worker: Any) -> None:
    answers = await asyncio.gather(
        *(random_worker.chat(seed=seed, temperature=2, max_tokens=400, response_format=CAT) for seed in range(24))
    )
    cats = [Cat.model_validate_json(text_of(answer)) for answer in answers]
    assert len({cat.name for cat in cats}) > 12  # they were drawn, not looked up
    assert {cat.colour for cat in cats} == {"black", "white", "red"}


@pytest.mark.parametrize(
    "drawn", [{"temperature": 0}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.3}, {"repetition_penalty": 2.0}]
)
async def test_a_schema_is_obeyed_under_every_way_of_drawing(random_worker: Any, drawn: dict[str, Any]) -> None:
    for seed in range(3):
        Cat.model_validate_json(
            text_of(await random_worker.chat(seed=seed, max_tokens=500, response_format=CAT, **drawn))
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_json": Cat.model_json_schema()},
        {"guided_json": json.dumps(Cat.model_json_schema())},
        {"structured_outputs": {"json": Cat.model_json_schema()}},
    ],
)
async def test_vllms_names_for_a_schema_mean_the_same(random_worker: Any, fields: dict[str, Any]) -> None:
    named = text_of(await random_worker.chat(seed=3, max_tokens=400, response_format=CAT))
    assert text_of(await random_worker.chat(seed=3, max_tokens=400, **fields)) == named


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"guided_regex": r"\(\d{3}\) [a-z]{2,4}"}, r"\(\d{3}\) [a-z]{2,4}"),
        ({"guided_regex": "^(yes|no)$"}, "yes|no"),
        ({"structured_outputs": {"regex": r"a\/b/c"}}, "a/b/c"),
        ({"guided_choice": ["red", "reddish", 'été "x"\\\n']}, 'red|reddish|été "x"\\\\\n'),
        ({"structured_outputs": {"choice": ["<|im_end|>", "<image>"]}}, r"<\|im_end\|>|<image>"),
        ({"guided_grammar": 'start: "a" b+\nb: "b" | "c"'}, "a[bc]+"),
        ({"structured_outputs": {"grammar": "start: /x{2,3}/"}}, "x{2,3}"),
        ({"structured_outputs": {"json_object": True}, "stop": None}, r"\{.*\}"),
    ],
)
async def test_each_kind_of_form_is_obeyed_in_chats_and_completions(
    random_worker: Any, fields: dict[str, Any], expected: str
) -> None:
    for seed in range(4):
        sampling = {"seed": seed, "max_tokens": 900, **fields}
        chat = await random_worker.chat(**sampling)
        body = {"model": "tiny", "prompt": "x", **sampling}
        raw = (await random_worker.client.post(TEXT, json=body)).json()["choices"][0]
        choice = chat.json()["choices"][0]
        for text, reason in (
            (choice["message"]["content"], choice["finish_reason"]),
            (raw["text"], raw["finish_reason"]),
        ):
            if reason == "stop":
                assert re.fullmatch(expected, text, re.DOTALL)
            else:
                assert (reason, fields["structured_outputs"]) == ("length", {"json_object": True})


async def test_an_answer_that_is_cut_off_says_length_and_begins_as_the_form_does(random_worker: Any) -> None:
    answer = (await random_worker.chat(max_tokens=3, guided_regex="abcdef")).json()["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"]) == ("abc", "length")
    whole = (await random_worker.chat(max_tokens=6, guided_regex="abcdef")).json()["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == ("abcdef", "length")


async def test_the_end_comes_with_the_form_whatever_ignore_eos_and_min_tokens_say(random_worker: Any) -> None:
    for fields in ({"ignore_eos": True}, {"min_tokens": 50}):
        assert text_of(await random_worker.chat(max_tokens=60, guided_regex="abc", **fields)) == "abc"
    # Where the form lets it go on, min_tokens is held.
    answer = text_of(await random_worker.chat(max_tokens=200, min_tokens=30, guided_regex="[ab]{1,40}"))
    assert 30 <= len(answer) <= 40


async def test_n_answers_follow_the_form_each_for_itself_and_as_the_seed_alone_would(random_worker: Any) -> None:
    fields = {"guided_regex": "[a-z]{3,9}!", "temperature": 1, "max_tokens": 20}
    several = (await random_worker.chat(n=4, seed=7, **fields)).json()["choices"]
    texts = [choice["message"]["content"] for choice in several]
    assert all(re.fullmatch("[a-z]{3,9}!", text) for text in texts) and len(set(texts)) > 2
    assert [text_of(await random_worker.chat(seed=7 + place, **fields)) for place in range(4)] == texts


async def test_a_bias_cannot_break_the_form_and_moves_what_it_leaves_open(random_worker: Any) -> None:
    ids = random_worker.service.intake._prompter.tokenizer.encode
    (x,), (b,) = ids("x", add_special_tokens=False), ids("b", add_special_tokens=False)
    bias = {str(x): 100, str(b): 100}
    assert text_of(await random_worker.chat(guided_regex="[abc]{5}", logit_bias=bias, max_tokens=9)) == "bbbbb"
    assert text_of(await random_worker.chat(guided_regex="b", logit_bias={str(b): -100}, max_tokens=9)) == "b"


async def test_logprobs_are_of_what_the_form_allows(random_worker: Any) -> None:
    answer = await random_worker.chat(guided_choice=["a", "b"], logprobs=True, top_logprobs=5, max_tokens=3)
    (score,) = answer.json()["choices"][0]["logprobs"]["content"]
    assert {rival["token"] for rival in score["top_logprobs"]} == {"a", "b"}
    assert sum(math.exp(rival["logprob"]) for rival in score["top_logprobs"]) == pytest.approx(1, abs=1e-4)


async def test_a_stop_string_still_cuts(random_worker: Any) -> None:
    answer = (await random_worker.chat(guided_regex="abcdef", stop="d", max_tokens=20)).json()["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"]) == ("abc", "stop")


async def test_a_stream_tells_the_same_as_the_whole(random_worker: Any) -> None:
    whole = text_of(await random_worker.chat(seed=5, max_tokens=400, response_format=CAT))
    response = await random_worker.chat(seed=5, max_tokens=400, response_format=CAT, stream=True)
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == whole
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_form_that_comes_to_a_dead_end_is_told_and_nothing_hangs(random_worker: Any) -> None:
    # The image token has a number, and a grammar can name it; it is never drawn.
    error = error_of(await random_worker.chat(guided_grammar='start: "a" <[259]> "b"', max_tokens=20))
    assert (error.param, error.code) in {("guided_grammar", "invalid_grammar"), (None, "grammar_failed")}
    assert (await random_worker.chat(guided_regex="ok", max_tokens=9)).status_code == 200


async def test_others_in_the_batch_are_answered_as_if_alone(random_worker: Any) -> None:
    plain = {"seed": 1, "max_tokens": 24, "ignore_eos": True}
    alone = (await random_worker.chat(**plain)).json()["choices"][0]
    together = await asyncio.gather(
        random_worker.chat(**plain),
        *(random_worker.chat(seed=seed, max_tokens=80, response_format=CAT) for seed in range(5)),
    )
    assert together[0].json()["choices"][0] == alone


async def test_a_form_is_compiled_once_and_counted(random_worker: Any) -> None:
    await asyncio.gather(*(random_worker.chat(guided_regex="a|b", max_tokens=3) for _ in range(4)))
    await random_worker.chat(guided_regex="(", max_tokens=3)
    page = (await random_worker.client.get("/metrics")).text
    for line in (
        'grammar_requests_total{kind="regex",model_name="tiny"} 5.0',
        'grammar_rejections_total{kind="regex",model_name="tiny"} 1.0',
        'grammar_cache_queries_total{model_name="tiny"} 5.0',
        'grammar_compile_seconds_count{model_name="tiny"} 2.0',
    ):
        assert f"tephra:{line}" in page
    assert "vllm:grammar" not in page
