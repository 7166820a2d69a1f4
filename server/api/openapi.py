"""The OpenAPI document: what FastAPI knows, and the hot routes that go around it, by `protocol.openai`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.protocol.openai import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    ErrorResponse,
)

_REFUSALS = {
    "400": "The request cannot be answered as it is; the message says why",
    "401": "Missing or wrong API key",
    "404": "No such model",
    "413": "Body or picture too large",
    "415": "The body is not JSON",
    "429": "Full; see Retry-After",
    "502": "A worker failed",
    "503": "No worker can answer; see Retry-After",
}
_EXAMPLE = {
    "model": "demo",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is in this picture?"},
                {"type": "image_url", "image_url": {"url": "https://example.org/picture.png"}},
            ],
        }
    ],
    "max_tokens": 64,
}


def document(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document with the generation routes added."""
    schema = FastAPI.openapi(app)
    models: tuple[type[BaseModel], ...] = (
        ChatCompletionRequest,
        ChatCompletion,
        ChatCompletionChunk,
        CompletionRequest,
        Completion,
        ErrorResponse,
    )
    names, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    components = schema.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **definitions.get("$defs", {})}
    components["securitySchemes"] = {"ApiKey": {"type": "http", "scheme": "bearer"}}

    def of(model: type[BaseModel]) -> dict[str, Any]:
        return names[(model, "validation")]

    schema["paths"]["/v1/chat/completions"] = {
        "post": _operation(
            "Answer a conversation, with pictures",
            of(ChatCompletionRequest),
            of(ChatCompletion),
            of(ChatCompletionChunk),
            of(ErrorResponse),
            _EXAMPLE,
        )
    }
    schema["paths"]["/v1/completions"] = {
        "post": _operation(
            "Continue a text",
            of(CompletionRequest),
            of(Completion),
            of(Completion),
            of(ErrorResponse),
            {"model": "demo", "prompt": "Once upon a time", "max_tokens": 32},
        )
    }
    return schema


def _operation(
    summary: str,
    request: dict[str, Any],
    answer: dict[str, Any],
    chunk: dict[str, Any],
    error: dict[str, Any],
    example: dict[str, Any],
) -> dict[str, Any]:
    return {
        "tags": ["Generation"],
        "summary": summary,
        "security": [{"ApiKey": []}, {}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": request, "example": example}}},
        "responses": {
            "200": {
                "description": "The answer; with `stream` true, server-sent events of chunks that end with `[DONE]`",
                "content": {"application/json": {"schema": answer}, "text/event-stream": {"itemSchema": chunk}},
            },
            **{
                status: {"description": words, "content": {"application/json": {"schema": error}}}
                for status, words in _REFUSALS.items()
            },
        },
    }
