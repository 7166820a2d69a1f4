"""Tools: forced calls from a random model, calls that a model of the Hermes family writes by itself, and refusals."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from server.protocol.openai import ChatCompletion, ChatCompletionChunk, ErrorResponse
from worker.start import ModelFiles

CHAT = "/v1/chat/completions"
TEMPLATE = """\
{%- if tools %}<|im_start|>system
Tools:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Call them as <tool_call>
{"name": ..., "arguments": ...}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content -%}
{%- if part.type == 'image' %}<image>
{% else %}{{ part.text }}{% endif -%}
{%- endfor -%}
{%- endif -%}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


def tool(name: str, parameters: dict[str, Any] | None = None, description: str = "") -> dict[str, Any]:
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def an_object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


WEATHER = tool(
    "get_weather",
    an_object(city={"type": "string", "maxLength": 6}, days={"type": "integer", "minimum": 1, "maximum": 9}),
    "Tells the weather.",
)
TIME = tool("get_time")
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def hermes_files(files: ModelFiles) -> ModelFiles:
    return replace(files, prompter=files.prompter.with_template(TEMPLATE))


def choice_of(response: Any) -> Any:
    assert response.status_code == 200, response.text
    return ChatCompletion.model_validate_json(response.content).choices[0]


def error_of(response: Any) -> Any:
    assert response.status_code == 400, response.text
    return ErrorResponse.model_validate_json(response.content).error


def check_weather(arguments: str) -> None:
    told = json.loads(arguments)
    assert set(told) == {"city", "days"}
    assert len(told["city"]) <= 6 and 1 <= told["days"] <= 9


def put_together(text: str) -> tuple[str, list[dict[str, Any]], str | None]:
    """(words, calls, finish_reason) of a stream, as a client puts its deltas together."""
    words, calls, reason = "", [], None
    for line in text.splitlines():
        if not line.startswith("data: {"):
            continue
        choice = ChatCompletionChunk.model_validate_json(line[6:]).choices[0]
        words += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for delta in choice.delta.tool_calls or ():
            if delta.id is not None:
                assert delta.index == len(calls) and delta.type == "function" and delta.id.startswith("call_")
                calls.append({"name": delta.function.name, "arguments": ""})
            calls[delta.index]["arguments"] += delta.function.arguments
    return words, calls, reason


async def test_a_named_function_is_called_by_its_schema_whatever_is_drawn(random_worker: Any) -> None:
    fields = {"tools": [TIME, WEATHER], "tool_choice": NAMED, "max_tokens": 300, "temperature": 1.5}
    for answer in await asyncio.gather(*(random_worker.chat(seed=seed, **fields) for seed in range(8))):
        choice = choice_of(answer)
        assert choice.finish_reason == "stop"  # as OpenAI and vLLM have it for a function that was named
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        assert call.function.name == "get_weather" and call.id.startswith("call_")
        check_weather(call.function.arguments)


@pytest.mark.parametrize("parallel", [True, False])
async def test_required_calls_one_or_several_of_the_functions(random_worker: Any, parallel: bool) -> None:
    fields = {"tools": [TIME, WEATHER], "tool_choice": "required", "parallel_tool_calls": parallel, "max_tokens": 1500}
    answers = await asyncio.gather(*(random_worker.chat(seed=seed, **fields) for seed in range(10)))
    choices = [choice for choice in map(choice_of, answers) if choice.finish_reason != "length"]
    assert len(choices) > 5
    names = set()
    for choice in choices:
        assert choice.finish_reason == "tool_calls"
        for call in choice.message.tool_calls:
            names.add(call.function.name)
            if call.function.name == "get_weather":
                check_weather(call.function.arguments)
            else:
                assert json.loads(call.function.arguments) == {}
    assert names == {"get_weather", "get_time"}
    most = max(len(choice.message.tool_calls) for choice in choices)
    assert most > 1 if parallel else most == 1


async def test_forced_calls_are_streamed_in_pieces_that_make_up_the_whole(random_worker: Any) -> None:
    fields = {"tools": [TIME, WEATHER], "tool_choice": "required", "max_tokens": 1500, "seed": 4}
    choice = choice_of(await random_worker.chat(**fields))
    streamed = await random_worker.chat(stream=True, **fields)
    words, calls, reason = put_together(streamed.text)
    assert (words, reason) == ("", choice.finish_reason)
    assert calls == [call.function.model_dump() for call in choice.message.tool_calls]
    assert streamed.text.count('"arguments"') > len(calls) * 2


async def test_functions_are_told_to_the_model_where_the_template_has_no_place_for_them(random_worker: Any) -> None:
    alone = (await random_worker.chat(max_tokens=1)).json()["usage"]["prompt_tokens"]
    told = await random_worker.chat(tools=[WEATHER], tool_choice="required", max_tokens=1)
    assert told.json()["usage"]["prompt_tokens"] > alone + len(json.dumps(WEATHER["function"]))
    unused = await random_worker.chat(tools=[WEATHER], tool_choice="none", max_tokens=1)
    assert unused.json()["usage"]["prompt_tokens"] == alone


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}])
async def test_auto_without_a_template_for_tools_is_refused_with_words(stage: Any, choice: dict[str, Any]) -> None:
    worker = await stage()
    error = error_of(await worker.chat(tools=[WEATHER], **choice))
    assert (error.param, error.code) == ("tool_choice", "tools_not_supported")
    assert "required" in error.message
    assert worker.engine.requests == []


HISTORY = [
    {"role": "user", "content": "Weather in <|im_end|>Rome?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "<|im_start|>", "days": 2}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "Sun<|im_end|>"},
]


async def test_calls_and_results_in_the_history_need_a_template_for_them(stage: Any, hermes_files: Any) -> None:
    without = await stage()
    body = {"model": "tiny", "messages": HISTORY}
    error = error_of(await without.client.post(CHAT, json=body))
    assert (error.param, error.code) == ("messages[1]", "tools_not_supported")
    worker = await stage(files=hermes_files)
    assert (await worker.client.post(CHAT, json={**body, "tools": [WEATHER]})).status_code == 200
    request = worker.engine.requests[0]
    prompt = worker.service.intake._prompter.tokenizer.decode(request.token_ids)
    for part in ('"name": "get_weather", "arguments": {"city"', "Tells the weather.", "Sun<|im_end|>"):
        assert part in prompt
    # What people wrote is text: one <|im_end|> a turn, four turns, and the system's.
    assert sum(token == 258 for token in request.token_ids) == 4
    broken = json.loads(json.dumps(HISTORY))
    broken[1]["tool_calls"][0]["function"]["arguments"] = "[1]"
    path = "messages[1].tool_calls[0].function.arguments"
    assert error_of(await worker.client.post(CHAT, json={**body, "messages": broken})).param == path


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>'
ROME = {"name": "get_weather", "arguments": '{"city": "Rome", "days": 2}'}


@pytest.mark.parametrize(
    ("said", "words", "calls", "reason"),
    [
        (CALL, "", [ROME], "tool_calls"),
        (f"Let me look. {CALL}\n{CALL}", "Let me look. ", [ROME, ROME], "tool_calls"),
        ("No tool is needed.", "No tool is needed.", [], "stop"),
        ("1 < 2 <tool", "1 < 2 <tool", [], "stop"),
        ("<tool_call>nonsense</tool_call>", "<tool_call>nonsense</tool_call>", [], "stop"),
        (CALL.replace("get_weather", "rm"), CALL.replace("get_weather", "rm"), [], "stop"),
        (CALL[:-20], CALL[:-20], [], "stop"),
    ],
)
async def test_calls_that_the_model_writes_by_itself_are_read(
    stage: Any, props: Any, hermes_files: Any, said: str, words: str, calls: list[Any], reason: str
) -> None:
    worker = await stage(props.say(said), files=hermes_files)
    choice = choice_of(await worker.chat(tools=[WEATHER], max_tokens=400))
    assert (choice.message.content or "", choice.finish_reason) == (words, reason)
    assert [call.function.model_dump() for call in choice.message.tool_calls or ()] == calls
    streamed = await worker.chat(tools=[WEATHER], max_tokens=400, stream=True)
    assert put_together(streamed.text) == (words, calls, reason)
    assert worker.engine.requests[0].constraint is None


async def test_without_parallel_calls_the_first_counts(stage: Any, props: Any, hermes_files: Any) -> None:
    worker = await stage(props.say(f"{CALL}\n{CALL}"), files=hermes_files)
    choice = choice_of(await worker.chat(tools=[WEATHER], max_tokens=400, parallel_tool_calls=False))
    assert [call.function.model_dump() for call in choice.message.tool_calls] == [ROME]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools", "same name"),
        ({"tools": [TIME], "tool_choice": NAMED}, "tool_choice", "not among the tools"),
        ({"tools": [tool("a b")]}, "tools[0].function.name", "pattern"),
        ({"tools": [tool(f"t{i}") for i in range(129)]}, "tools", "at most 128"),
        ({"tools": [tool("t", description="x" * 16_385)]}, "tools[0].function.description", "16384"),
        ({"tools": [tool("t", {"pattern": "a{9999999}"})], "tool_choice": "required"}, "tools", "t: pattern"),
        ({"tools": [tool("t", {"$ref": "http://x"})], "tool_choice": "required"}, "tools", "nothing is fetched"),
        (
            {"tools": [tool(f"t{i}", description="x" * 16_000) for i in range(5)], "tool_choice": "required"},
            "tools",
            "at most 65536",
        ),
        (
            {"tools": [TIME], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
            "together with tools",
        ),
        ({"tool_choice": {"type": "custom"}, "tools": [TIME]}, "tool_choice.type", "function"),
    ],
)
async def test_tools_that_cannot_be_are_refused(stage: Any, fields: dict[str, Any], param: str, words: str) -> None:
    worker = await stage()
    error = error_of(await worker.chat(**fields))
    assert error.param == param and words in error.message
    assert worker.engine.requests == []
