"""What another worker must know to carry on a stream: collected as the stream passes, and kept from the client.

`server.protocol.continuing` is the form. What a stream costs here is bounded: beyond it the stream goes on, but could
not be carried on any more.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field

import msgspec

from server.protocol.continuing import MARK, MAX_CONTINUATION, MAX_TOKENS, Beginning, TokenId

_PRIVATE = re.compile(rb"^:[^\n]*\n\n?", re.MULTILINE)  # a comment line stands before data, or is an event by itself
_MOST_HELD = 64 * 1024  # bytes
_NOTHING_HELD = msgspec.Raw(b"[]")


class _News(msgspec.Struct, array_like=True):
    """`Told`, with what is only passed on left as it came."""

    index: int
    tokens: list[TokenId] = []
    held: msgspec.Raw = _NOTHING_HELD
    ended: bool = False


@dataclass
class _Choice:
    tokens: array[int] = field(default_factory=lambda: array("i"))
    held: bytes = b"[]"
    ended: bool = False


_read_beginning = msgspec.json.Decoder(Beginning).decode
_read_news = msgspec.json.Decoder(_News).decode


class CarryOver:
    """Of one stream, through all its workers."""

    def __init__(self) -> None:
        self._beginning: Beginning | None = None
        self._choices: dict[int, _Choice] = {}
        self._tokens = 0
        self._lost = False

    @property
    def possible(self) -> bool:
        return self._beginning is not None and not self._lost

    @property
    def version(self) -> str:
        """Of the model that the stream began with. Only where it is `possible`."""
        assert self._beginning is not None
        return self._beginning.version

    def take(self, frames: bytes) -> bytes:
        """Whole frames as the client may see them; perhaps nothing."""
        if not frames.startswith(b":") and b"\n:" not in frames:
            return frames
        for line in _PRIVATE.findall(frames):
            if line.startswith(MARK) and not self._lost:
                try:
                    self._read(line[len(MARK) :].rstrip())
                except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError):
                    self._give_up()
        return _PRIVATE.sub(b"", frames)

    def continuation(self) -> bytes:
        """Empty where it cannot be made."""
        if not self.possible:
            return b""
        choices = [
            [index, list(choice.tokens), msgspec.Raw(choice.held), choice.ended]
            for index, choice in self._choices.items()
        ]
        state = msgspec.json.encode({"beginning": self._beginning, "choices": choices})
        return state if len(state) <= MAX_CONTINUATION else b""

    def _read(self, content: bytes) -> None:
        if content.startswith(b"{"):
            beginning = _read_beginning(content)
            self._beginning = self._beginning or beginning
            return
        news = _read_news(content)
        choice = self._choices.setdefault(news.index, _Choice())
        choice.tokens.extend(news.tokens)
        choice.held, choice.ended = bytes(news.held), news.ended
        self._tokens += len(news.tokens)
        if self._tokens > MAX_TOKENS or len(choice.held) > _MOST_HELD or len(self._choices) > 1024:
            self._give_up()

    def _give_up(self) -> None:
        self._lost = True
        self._choices.clear()
