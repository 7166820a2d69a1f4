"""Answers of a given form and calls of tools, asked for with the `openai` package through the controller."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import openai
import pytest
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel, Field

pytestmark = pytest.mark.timeout(400)  # the first test waits for the system

Word = Annotated[str, Field(max_length=6)]


class Step(BaseModel):
    what: Word
    minutes: int = Field(ge=0, le=90)


class Recipe(BaseModel):
    title: Word
    kind: Literal["soup", "cake"]
    steps: list[Step] = Field(max_length=2)


class GetWeather(BaseModel):
    """Tells the weather."""

    city: Word
    unit: Literal["C", "F"]


def asked(running: Any, **fields: Any) -> dict[str, Any]:
    return {
        "model": running.model,
        "messages": [{"role": "user", "content": "Write it down."}],
        "max_tokens": 600,
        **fields,
    }


def test_parse_gives_an_object_of_the_class_that_was_asked_for(running: Any, client: OpenAI) -> None:
    for seed in range(4):
        answer = client.chat.completions.parse(**asked(running, seed=seed), response_format=Recipe)
        assert isinstance(answer.choices[0].message.parsed, Recipe)
        assert answer.choices[0].finish_reason == "stop"


def test_a_stream_of_a_form_is_parsed_at_its_end(running: Any, client: OpenAI, pictures: Any) -> None:
    content = [pictures.part(1), {"type": "text", "text": "Which?"}]
    fields = asked(running, seed=2, messages=[{"role": "user", "content": content}])
    with client.chat.completions.stream(**fields, response_format=Recipe) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert len(pieces) > 10
    assert isinstance(final.choices[0].message.parsed, Recipe)
    assert Recipe.model_validate_json("".join(pieces)) == final.choices[0].message.parsed


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "GetWeather"}}])
def test_tools_that_must_be_called_are_parsed_whole_and_streamed(running: Any, client: OpenAI, choice: Any) -> None:
    fields = asked(running, seed=1, tools=[pydantic_function_tool(GetWeather)], tool_choice=choice)
    fields |= {"parallel_tool_calls": False}
    whole = client.chat.completions.parse(**fields).choices[0]
    assert whole.finish_reason == ("tool_calls" if choice == "required" else "stop")
    (call,) = whole.message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, GetWeather)
    with client.chat.completions.stream(**fields) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion().choices[0]
    assert [event.name for event in done] == ["GetWeather"]
    (streamed,) = final.message.tool_calls or ()
    assert streamed.function.arguments == call.function.arguments
    assert final.finish_reason == whole.finish_reason


def test_vllms_fields_pass_through_in_chats_and_completions(running: Any, client: OpenAI) -> None:
    extra = {"extra_body": {"guided_choice": ["yes", "no"]}}
    assert client.chat.completions.create(**asked(running), **extra).choices[0].message.content in ("yes", "no")
    raw = client.completions.create(model=running.model, prompt="Is it?", **extra)
    assert raw.choices[0].text in ("yes", "no")


def test_a_form_that_cannot_be_had_is_the_clients_error(running: Any, client: OpenAI) -> None:
    for fields, param in (
        ({"extra_body": {"guided_regex": "a{1,10000000}"}}, "guided_regex"),
        ({"tools": [pydantic_function_tool(GetWeather)]}, "tool_choice"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://x"}}}},
            "response_format.json_schema.schema",
        ),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**asked(running), **fields)  # type: ignore[call-overload]
        assert caught.value.param == param
        assert json.dumps(caught.value.body)


def test_a_client_that_leaves_in_the_middle_of_a_form_frees_the_worker(
    running: Any, client: OpenAI, eventually: Any
) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 900}
    fields = asked(running, max_tokens=1500, stream=True, extra_body={"guided_json": schema})
    with client.chat.completions.create(**fields) as stream:
        next(iter(stream))
    eventually(running.idle, "nothing is left of it")
