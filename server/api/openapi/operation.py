"""One operation of the API, and how it is written into the document.

Knows OpenAPI's form, not what any route does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from server.api.openapi import headers as header
from server.api.openapi.refusals import EVERYWHERE, MEANINGS, Refusal, by_status

Json = dict[str, Any]
Schemas = Mapping[type, Json]  # where the schema of each type stands in the document
Key = Literal["client", "admin", "admin_or_local", "worker", "none"]

SECURITY: dict[Key, list[dict[str, list[str]]]] = {
    "client": [{"ApiKey": []}, {}],
    "admin": [{"AdminKey": []}],
    "admin_or_local": [{"AdminKey": []}, {}],
    "worker": [{"WorkerSecret": []}],
    "none": [{}],
}


@dataclass(frozen=True)
class Example:
    """A request that works when it is sent as it stands."""

    name: str
    summary: str
    body: Json


@dataclass(frozen=True)
class Parameter:
    """Of the path, where it is needed, or of the query, where it may be left out."""

    name: str
    words: str
    schema: Json
    example: str | int
    place: Literal["path", "query"] = "path"

    def render(self) -> Json:
        return {
            "name": self.name,
            "in": self.place,
            "required": self.place == "path",
            "description": self.words,
            "schema": self.schema,
            "example": self.example,
        }


TEXT: Json = {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class Answer:
    """An answer that is no refusal: of a type of ours, or of a media type that the document says no more about."""

    words: str
    shape: type | None = None
    media_type: str = "application/json"
    chunk: type[BaseModel] | None = None  # of the same answer streamed
    example: Json | None = None
    status: int = 200


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    tag: str
    summary: str
    answers: tuple[Answer, ...]
    refusals: tuple[Refusal, ...] = ()
    key: Key = "none"
    words: str = ""
    body: type | None = None
    examples: tuple[Example, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    asked_headers: tuple[str, ...] = ()
    told_headers: tuple[str, ...] = ()  # of every answer, refusals included
    versioned: bool = False  # whether a worker's answer names the version that it was computed on

    @property
    def label(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def types(self) -> list[type]:
        """All whose schemas it needs."""
        shapes = [shape for answer in self.answers for shape in (answer.shape, answer.chunk)]
        return [shape for shape in (self.body, *shapes) if shape is not None]

    def render(self, schemas: Schemas) -> Json:
        described: Json = {
            "operationId": _identifier(self.method, self.path),
            "tags": [self.tag],
            "summary": self.summary,
            "security": SECURITY[self.key],
            "parameters": [
                *(parameter.render() for parameter in self.parameters),
                *header.parameters(header.REQUEST_ID, *self.asked_headers),
            ],
            "responses": {
                **{str(answer.status): self._render_answer(answer, schemas) for answer in self.answers},
                **{
                    str(status): self._render_refusals(status, refusals)
                    for status, refusals in by_status((*self.refusals, *EVERYWHERE)).items()
                },
            },
        }
        if self.words:
            described["description"] = self.words
        if self.body is not None:
            described["requestBody"] = {"required": True, "content": {"application/json": self._body(schemas)}}
        return described

    def _body(self, schemas: Schemas) -> Json:
        assert self.body is not None
        examples = {example.name: {"summary": example.summary, "value": example.body} for example in self.examples}
        return {"schema": schemas[self.body], "examples": examples}

    def _render_answer(self, answer: Answer, schemas: Schemas) -> Json:
        told = header.headers(header.REQUEST_ID, *self.told_headers)
        if self.versioned:
            told[header.SERVED_VERSION] = {**header.HEADERS[header.SERVED_VERSION], "required": True}
        rendered: Json = {"description": answer.words, "headers": told}
        if answer.status == 204:
            return rendered
        content: Json = {"schema": schemas[answer.shape] if answer.shape else {"type": "string"}}
        if answer.example is not None:
            content["example"] = answer.example
        rendered["content"] = {answer.media_type: content}
        if answer.chunk is not None:
            rendered["content"]["text/event-stream"] = _event(schemas[answer.chunk])
        return rendered

    def _render_refusals(self, status: int, refusals: list[Refusal]) -> Json:
        told = header.headers(header.REQUEST_ID, *self.told_headers)
        if status in (422, 429, 503):
            told |= header.headers(header.RETRY_AFTER)
        if status == 429:
            told |= header.headers("x-should-retry")
        if status == 401:
            told |= header.headers("WWW-Authenticate")
        if self.versioned:
            told |= header.headers(header.SERVED_VERSION)
        cases = "\n".join(f"- `{'null' if one.code is None else one.code}`: {one.when}" for one in refusals)
        return {
            "description": f"{MEANINGS[status]}. By `code`:\n\n{cases}",
            "headers": told,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}},
            "x-error-codes": [one.code for one in refusals],
        }


def _event(chunk: Json) -> Json:
    """One event of a stream; before OpenAPI 3.2, which few tools read, that is what stands under `schema`."""
    words = (
        "Server-sent events. Each is one line `data: ` with a chunk as JSON and an empty line; the last is "
        "`data: [DONE]`. What fails after the stream has begun is told by an event whose data is an ErrorResponse, "
        "after which the stream ends. Lines that begin with a colon are comments."
    )
    piece = {"anyOf": [chunk, {"$ref": "#/components/schemas/ErrorResponse"}]}
    data = {
        "type": "string",
        "anyOf": [{"const": "[DONE]"}, {"contentMediaType": "application/json", "contentSchema": piece}],
    }
    return {"schema": {"type": "object", "description": words, "required": ["data"], "properties": {"data": data}}}


def _identifier(method: str, path: str) -> str:
    words = "".join(letter if letter.isalnum() else " " for letter in path).split()
    return "_".join([method.lower(), *words])
