"""Answers of a given form: OpenAI's `response_format`, vLLM's `guided_*` and `structured_outputs`.

Says what was asked for and where it stands in the request; whether a schema or expression is any good is found out
where it is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from server.protocol.errors import bad_request
from server.protocol.openai.base import NotSupported, NotTrue, StrictModel, kind_of, shape_of

MAX_CHOICES = 1024

StructureKind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]

Schema = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[dict[str, Any], Tag("<object>")], Discriminator(shape_of)
]
Choices = Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]


class TextFormat(StrictModel):
    type: Literal["text"]


class JsonObjectFormat(StrictModel):
    type: Literal["json_object"]


class NamedSchema(StrictModel):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="Accepted: an answer always follows the schema.")


class JsonSchemaFormat(StrictModel):
    type: Literal["json_schema"]
    json_schema: NamedSchema


def _format_kind(value: object) -> str | None:
    return kind_of(value, "text", "json_object", "json_schema")


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
    Discriminator(
        _format_kind,
        custom_error_type="response_format",
        custom_error_message="type must be 'text', 'json_object' or 'json_schema'",
    ),
]


class StructuredOutputs(StrictModel):
    """vLLM's newer name for `guided_*`."""

    json_: Schema | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: NotSupported = None
    whitespace_pattern: NotSupported = None
    disable_any_whitespace: NotTrue = None
    disable_additional_properties: NotTrue = None


@dataclass(frozen=True)
class Structure:
    """The form that an answer must have. `param` names the request's field that asks for it."""

    kind: StructureKind
    value: Any  # a schema (object or JSON text), an expression, the list of choices, a grammar; None for json_object
    param: str


class StructureFields(StrictModel):
    """The fields of a request that ask for a form; at most one may."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = Field(None, description="A JSON schema, as an object or as text.")
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = Field(None, description="A grammar in llguidance's variant of Lark.")
    guided_whitespace_pattern: NotSupported = None

    def structure(self) -> Structure | None:
        """Raises ApiError 400 when more than one field asks for a form."""
        asked = list(self._asked())
        if len(asked) > 1:
            names = " and ".join(one.param for one in asked)
            raise bad_request(f"{names} cannot be used together: an answer has one form.", param=asked[1].param)
        return asked[0] if asked else None

    def _asked(self) -> list[Structure]:
        found = []
        if isinstance(self.response_format, JsonSchemaFormat):
            found.append(
                Structure("json_schema", self.response_format.json_schema.schema_, "response_format.json_schema.schema")
            )
        elif isinstance(self.response_format, JsonObjectFormat):
            found.append(Structure("json_object", None, "response_format"))
        for kind, value, param in (
            ("json_schema", self.guided_json, "guided_json"),
            ("regex", self.guided_regex, "guided_regex"),
            ("choice", self.guided_choice, "guided_choice"),
            ("grammar", self.guided_grammar, "guided_grammar"),
        ):
            if value is not None:
                found.append(Structure(kind, value, param))  # type: ignore[arg-type]
        return found + (_newer(self.structured_outputs) if self.structured_outputs else [])


def _newer(asked: StructuredOutputs) -> list[Structure]:
    fields: list[tuple[StructureKind, Any, str]] = [
        ("json_schema", asked.json_, "json"),
        ("regex", asked.regex, "regex"),
        ("choice", asked.choice, "choice"),
        ("grammar", asked.grammar, "grammar"),
        ("json_object", asked.json_object or None, "json_object"),
    ]
    return [
        Structure(kind, None if kind == "json_object" else value, f"structured_outputs.{name}")
        for kind, value, name in fields
        if value is not None
    ]
