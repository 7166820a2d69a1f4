"""What the OpenAPI document says beside the schemas: errors, streams."""

from __future__ import annotations

from typing import Any

from server.protocol.openai import ChatCompletionChunk, ErrorResponse

Responses = dict[int | str, dict[str, Any]]

ERRORS: Responses = {
    400: {"model": ErrorResponse, "description": "The request cannot be answered; `param` names the field."},
    401: {"model": ErrorResponse, "description": "Missing or wrong API key."},
    404: {"model": ErrorResponse, "description": "No such model or path."},
    408: {"model": ErrorResponse, "description": "The body did not arrive in time."},
    413: {"model": ErrorResponse, "description": "Body or image larger than accepted."},
    429: {"model": ErrorResponse, "description": "Too much in hand; Retry-After says when to come back."},
    431: {"model": ErrorResponse, "description": "Headers larger than accepted."},
    500: {"model": ErrorResponse, "description": "The answer failed; the log has it under the request id."},
    503: {"model": ErrorResponse, "description": "Stopping or not ready; Retry-After says when to come back."},
    504: {"model": ErrorResponse, "description": "The answer took longer than a request may."},
}


def _answers(description: str, chunk: type[Any] | None) -> Responses:
    schema: dict[str, Any] = {"type": "string", "description": "Frames 'data: {chunk}', then 'data: [DONE]'."}
    if chunk is not None:
        schema["description"] += f" A chunk is a {chunk.__name__}."
    return {**ERRORS, 200: {"description": description, "content": {"text/event-stream": {"schema": schema}}}}


CHAT_RESPONSES = _answers("The answer; with stream: true its chunks as server-sent events.", ChatCompletionChunk)
TEXT_RESPONSES = _answers("The continuation; with stream: true in chunks of the same shape.", None)
