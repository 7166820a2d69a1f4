"""Reads the LLaVA conversation format.

    [{"id": ..., "image": "a.png" (optional), "conversations": [{"from": "human" | "gpt", "value": "..."}, ...]}, ...]

as a JSON list or one object a line. `<image>` in a human turn marks the image's place. `"turns": "independent"` (ours)
says that no question of the row builds on an earlier one. A row that does not fit is an error that names file and row:
nothing is dropped or replaced in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.prompts import ChatMessage, ImagePart, TextPart
from training.data.errors import DataError

_PLACE = "<image>"
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True)
class Conversation:
    """One row: its messages, and the picture they speak of."""

    id: str
    image: Path | None
    messages: tuple[ChatMessage, ...]
    independent: bool = False  # each question is asked with nothing but the picture before it

    @property
    def text_length(self) -> int:
        """Characters of text; near enough to group rows of like length."""
        return sum(len(part.text) for m in self.messages for part in m.parts if isinstance(part, TextPart))


def read_conversations(file: Path, image_folder: Path) -> list[Conversation]:
    """Reads a .json or .jsonl file. Raises DataError."""
    rows = [_conversation(row, f"{file}: row {number}", image_folder) for number, row in _rows(file)]
    if not rows:
        raise DataError(f"{file}: no rows")
    return rows


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    try:
        if file.suffix == ".jsonl":
            lines = ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())
            yield from ((number, json.loads(line)) for number, line in lines)
        else:
            yield from enumerate(json.loads(text), 1)
    except (ValueError, TypeError) as error:
        raise DataError(f"{file}: not valid JSON ({error})") from error


def _conversation(row: Any, where: str, image_folder: Path) -> Conversation:
    if not isinstance(row, dict) or not isinstance(row.get("conversations"), list) or not row["conversations"]:
        raise DataError(f"{where}: expected an object with a list of conversations")
    image = row.get("image")
    if image is not None and not isinstance(image, str):
        raise DataError(f"{where}: image must be one file name")
    messages = tuple(message_of(turn, where) for turn in row["conversations"])
    places = sum(isinstance(part, ImagePart) for message in messages for part in message.parts)
    if places != (image is not None):
        raise DataError(f"{where}: {places} image places in the text, {int(image is not None)} images")
    if not any(message.role == "assistant" for message in messages):
        raise DataError(f"{where}: no answer to learn from")
    turns = row.get("turns")
    if turns not in (None, "independent"):
        raise DataError(f'{where}: turns is {turns!r}, expected "independent" or nothing')
    path = image_folder / image if image else None
    return Conversation(str(row.get("id", where)), path, messages, independent=turns == "independent")


def questions(row: Conversation) -> list[tuple[ChatMessage, ...]]:
    """The row's questions, each as a conversation of its own: system message, picture, question, answer.

    Raises DataError when a question has no answer.
    """
    system = tuple(message for message in row.messages if message.role == "system")
    turns = [message for message in row.messages if message.role != "system"]
    picture = (ImagePart(),) if row.image is not None else ()
    pairs = list(zip(turns[::2], turns[1::2], strict=len(turns) % 2 == 0))
    if len(turns) % 2 or any(ask.role != "user" or answer.role != "assistant" for ask, answer in pairs):
        raise DataError(f"row {row.id}: independent turns must be questions, each with its answer")
    asked = [tuple(part for part in ask.parts if isinstance(part, TextPart)) for ask, _ in pairs]
    return [
        (*system, ChatMessage("user", (*picture, *text)), answer)
        for text, (_, answer) in zip(asked, pairs, strict=True)
    ]


def message_of(turn: Any, where: str) -> ChatMessage:
    """One turn as the trainer reads it. Raises DataError."""
    role = _ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
    value = turn.get("value") if isinstance(turn, dict) else None
    if role is None or not isinstance(value, str):
        raise DataError(f"{where}: a turn needs from (human, gpt, system) and a text value")
    if role != "user":
        return ChatMessage(role, (TextPart(value),))
    parts: list[TextPart | ImagePart] = []
    for index, text in enumerate(value.split(_PLACE)):
        if index:
            parts.append(ImagePart())
        stripped = text.removeprefix("\n") if index else text.removesuffix("\n") if _PLACE in value else text
        if stripped:
            parts.append(TextPart(stripped))
    return ChatMessage(role, tuple(parts))
