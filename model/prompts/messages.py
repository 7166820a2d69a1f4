"""What a conversation is made of, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextPart:
    text: str


@dataclass(frozen=True)
class ImagePart:
    """The next image of the conversation stands here."""


@dataclass(frozen=True)
class ChatMessage:
    role: str
    parts: tuple[TextPart | ImagePart, ...]


@dataclass(frozen=True)
class LabelledPrompt:
    """A whole conversation as tokens; `supervised[i]` says whether token i is one that the assistant must produce."""

    token_ids: tuple[int, ...]
    supervised: tuple[bool, ...]
