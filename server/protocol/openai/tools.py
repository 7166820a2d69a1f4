"""Tools that the model may call, and which of them it must."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag

from server.protocol.openai.base import StrictModel, shape_of

MAX_TOOLS = 128
MAX_TOOL_CALLS = 128  # in one message
MAX_DESCRIPTION = 16_384  # characters

FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionDefinition(StrictModel):
    name: FunctionName
    description: str | None = Field(None, max_length=MAX_DESCRIPTION)
    parameters: dict[str, Any] | None = Field(
        None, description="A JSON schema of an object; without it a call has no arguments."
    )
    strict: bool | None = Field(
        None, description="Accepted: named and required calls always follow the schema, automatic ones never must."
    )


class Tool(StrictModel):
    type: Literal["function"]
    function: FunctionDefinition


class ChosenFunction(StrictModel):
    name: FunctionName


class NamedToolChoice(StrictModel):
    type: Literal["function"]
    function: ChosenFunction


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<string>")] | Annotated[NamedToolChoice, Tag("<object>")],
    Discriminator(shape_of),
]
