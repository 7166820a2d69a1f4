"""What a conversation is made of, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass

from model.prompts.tools import ToolUse


@dataclass(frozen=True)
class TextPart:
    text: str


@dataclass(frozen=True)
class ImagePart:
    """The next image of the conversation stands here."""


@dataclass(frozen=True)
class ChatMessage:
    """`tool_calls` are an assistant's; a message of role "tool" answers the call `tool_call_id`."""

    role: str
    parts: tuple[TextPart | ImagePart, ...]
    tool_calls: tuple[ToolUse, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True)
class LabelledPrompt:
    """A whole conversation as tokens; `supervised[i]` says whether token i is one that the assistant must produce."""

    token_ids: tuple[int, ...]
    supervised: tuple[bool, ...]
