"""Messages of a conversation: text, pictures, calls of tools and what they returned."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from server.protocol.openai.base import NotSupported, StrictModel, kind_of, shape_of
from server.protocol.openai.tools import MAX_TOOL_CALLS, FunctionName

MAX_MESSAGES = 2048
MAX_PARTS = 1024  # content parts in one message

Role = Literal["system", "developer", "user", "assistant", "tool"]


class ImageUrl(StrictModel):
    url: str = Field(description="data:image/png;base64,... or http(s)://...")
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="Accepted for compatibility: the checkpoint decides how an image is tiled."
    )


class TextContent(StrictModel):
    type: Literal["text"]
    text: str


class ImageContent(StrictModel):
    type: Literal["image_url"]
    image_url: Annotated[
        Annotated[str, Tag("<string>")] | Annotated[ImageUrl, Tag("<object>")], Discriminator(shape_of)
    ]

    @property
    def url(self) -> str:
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


def _part_kind(value: object) -> str | None:
    return kind_of(value, "text", "image_url")


ContentPart = Annotated[
    Annotated[TextContent, Tag("<text>")] | Annotated[ImageContent, Tag("<image_url>")],
    Discriminator(
        _part_kind,
        custom_error_type="content_type",
        custom_error_message="type must be 'text' or 'image_url'; other kinds of content are not supported",
    ),
]


class FunctionCall(StrictModel):
    name: FunctionName
    arguments: str = Field(description="A JSON object, as text.")


class ToolCall(StrictModel):
    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"]
    function: FunctionCall


def _content_where_needed(value: object, info: ValidationInfo) -> object:
    if value is None and not info.data.get("tool_calls"):
        raise PydanticCustomError("missing", "Field required")
    return value


class Message(StrictModel):
    role: Role
    name: str | None = Field(None, description="Ignored: the templates of this family have no place for it.")
    tool_calls: list[ToolCall] | None = Field(
        None, max_length=MAX_TOOL_CALLS, description="Of assistant messages, where the chat template supports tools."
    )
    tool_call_id: str | None = Field(None, max_length=128, description="Of tool messages: the call that it answers.")
    content: Annotated[
        Annotated[
            Annotated[str, Tag("<string>")]
            | Annotated[list[ContentPart], Tag("<list>"), Field(min_length=1, max_length=MAX_PARTS)],
            Discriminator(shape_of),
        ]
        | None,
        AfterValidator(_content_where_needed),
        Field(validate_default=True, description="May be null in an assistant message with tool_calls alone."),
    ] = None
    function_call: NotSupported = None
    audio: NotSupported = None

    @property
    def parts(self) -> list[TextContent | ImageContent]:
        if self.content is None:
            return []
        if isinstance(self.content, str):
            return [TextContent(type="text", text=self.content)]
        return list(self.content)

    @model_validator(mode="after")
    def _fields_of_its_role(self) -> Self:
        if self.role != "user" and any(isinstance(part, ImageContent) for part in self.parts):
            raise PydanticCustomError("image_role", "images may stand in user messages only")
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("tool_calls_role", "tool_calls may stand in assistant messages only")
        if self.role == "tool" and not self.tool_call_id:
            raise PydanticCustomError("tool_call_id", "a tool message needs the tool_call_id that it answers")
        return self


def uses_tools(messages: list[Message]) -> int | None:
    """The place of the first message that a template without tools has no form for."""
    return next((at for at, message in enumerate(messages) if message.tool_calls or message.role == "tool"), None)
