"""Schemas, expressions and grammars that are made to hurt: each is a quick, clear 400, and the worker goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.protocol.openai import ErrorResponse


def chained(keyword: str, links: int) -> dict[str, Any]:
    """Definitions that each lead to the next, twice."""
    following = {f"a{i}": {keyword: [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(links)}
    return {"$ref": "#/$defs/a0", "$defs": {**following, f"a{links}": {"type": "string", "pattern": "(?=x)"}}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


SLOW = ".*" * 4000  # a second or two of compiling
RULES = "\n".join(f"r{i}: r{i + 1}" for i in range(4000))
SCHEMAS: list[tuple[Any, str]] = [
    ({"type": "string", "pattern": "a{1,10000000}"}, "20000 characters"),
    ({"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"}, "20000 characters"),
    ({"patternProperties": {"(x{999}){999}": {}}}, "20000 characters"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"type": "array", "minItems": 10**9}, "1000000"),
    ({"type": "string", "maxLength": 1e300}, "1000000"),
    ({"const": "x" * 5000}, "4096"),
    ({"enum": ["y", "x" * 5000]}, "4096"),
    (nested(70), "nested more than 64"),
    ({"$ref": "http://127.0.0.1:1/schema.json"}, "nothing is fetched"),
    ({"items": {"anyOf": [{"$ref": "file:///etc/passwd"}]}}, "nothing is fetched"),
    ({"$ref": "#"}, "nothing can follow"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "nothing can follow"),
    ({"$ref": "#/$defs/absent"}, "does not exist"),
    (chained("allOf", 30), ""),
    (chained("oneOf", 30), ""),
    ({"allOf": [{"anyOf": [{"properties": {f"p{i}": {"const": j}}} for j in range(10)]} for i in range(6)]}, "large"),
    ({"properties": {f"property{i}": {"type": "string"} for i in range(1500)}}, "at most 400"),
    ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "nsatisfiable"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "integer", "minimum": 10**400}, ""),
    ({"properties": {"a": {"description": "x" * 70_000}}}, "at most 65536"),
    ("not json", "JSON"),
    ("[1]", "object"),
    ("[" * 20_000, "nested"),
]


@pytest.mark.parametrize(("schema", "words"), SCHEMAS, ids=range(len(SCHEMAS)))
async def test_a_hostile_schema_is_refused(stage: Any, schema: Any, words: str) -> None:
    worker = await stage()
    response = await worker.chat(guided_json=schema)
    assert response.status_code == 400, response.text
    error = ErrorResponse.model_validate_json(response.content).error
    assert error.param == "guided_json"
    assert words in error.message and len(error.message) < 500 and "\n" not in error.message
    assert worker.engine.requests == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"guided_regex": "a{1,10000000}"}, "20000 characters"),
        ({"guided_regex": "(((a{99}){99}){99}){99}"}, "20000 characters"),
        ({"guided_regex": "(" * 5000 + ")" * 5000}, "nested more than 64"),
        ({"guided_regex": "a?" * 300 + "a" * 300}, "too many expressions"),
        ({"guided_regex": ".*" * 3000}, "too many expressions"),
        ({"guided_regex": r"(a)\1"}, "backreferences"),
        ({"guided_regex": "("}, "unclosed group"),
        ({"guided_regex": "x" * 70_000}, "at most 65536"),
        ({"guided_choice": [""]}, "must not be empty"),
        ({"guided_choice": ["x" * 5000]}, "4096"),
        ({"guided_choice": ["x" * 4000] * 20}, "at most 65536"),
        ({"guided_choice": ["x"] * 1025}, "at most 1024"),
        ({"guided_grammar": f'start: r0\n{RULES}\nr4000: "a"'}, "more than the parser can take"),
        ({"guided_grammar": "start: " + "(" * 9000 + '"a"' + ")" * 9000}, "deeply nested"),
        ({"guided_grammar": "start: start"}, "nothing can follow"),
        ({"guided_grammar": "nonsense ::"}, "Expected"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "cannot be used together"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "cannot be used together"),
    ],
)
async def test_a_hostile_expression_or_grammar_is_refused(stage: Any, fields: dict[str, Any], words: str) -> None:
    worker = await stage()
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
    ):
        response = await worker.client.post(path, json={"model": "tiny", **body, **fields})
        assert response.status_code == 400, response.text
        error = ErrorResponse.model_validate_json(response.content).error
        assert words in error.message and len(error.message) < 500
        assert error.param is not None and error.param.split(".")[0] in fields
    assert worker.engine.requests == []


async def test_what_takes_too_long_is_killed_and_the_next_is_served(stage: Any) -> None:
    worker = await stage(grammar_seconds=0.2)
    await worker.chat(guided_regex="ab")  # which starts the process, by another clock
    response = await worker.chat(guided_regex=SLOW)
    assert "longer than 0.2 s" in ErrorResponse.model_validate_json(response.content).error.message
    assert (await worker.chat(guided_regex="cd")).status_code == 200


async def test_a_client_that_leaves_ends_the_compilation(stage: Any) -> None:
    worker = await stage(grammar_seconds=60, grammar_waiting=1)
    assert (await worker.chat(guided_regex="ab")).status_code == 200
    compiler = worker.service.grammars._compiler
    for _ in range(3):
        request = asyncio.create_task(worker.chat(guided_regex=SLOW))
        while not compiler.under_way:
            await asyncio.sleep(0.005)
        assert (await worker.chat(guided_regex="never seen")).status_code == 429
        request.cancel()
        while compiler.under_way:
            await asyncio.sleep(0.005)
    assert (await worker.chat(guided_regex="cd")).status_code == 200


async def test_hostile_schemas_by_the_dozen_leave_others_their_answers(stage: Any) -> None:
    worker = await stage()
    hostile = [worker.chat(guided_json=schema) for schema, _ in SCHEMAS]
    answers = await asyncio.gather(*hostile, *(worker.chat() for _ in range(8)))
    assert [answer.status_code for answer in answers] == [400] * len(SCHEMAS) + [200] * 8
