"""Reads one streamed chat answer and notes when its parts came; says in a word what is wrong with a bad one.

Knows nothing of connections: it is given bytes and the moment at which they came.
"""

from __future__ import annotations

import re
from http import HTTPStatus

import msgspec

from server.sse import DONE, FrameCutter, FrameTooLong

_PRINTABLE = re.compile(r"[^\w .:-]+")
_LONGEST_NAME = 48
_NULL = msgspec.Raw(b"null")


class BadAnswer(Exception):
    """The answer is none; the message is the kind of error, `detail` what was found. `refused`: for want of room."""

    def __init__(self, kind: str, detail: str = "", *, refused: bool = False) -> None:
        super().__init__(kind)
        self.detail, self.refused = detail, refused


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Words(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Words | None = None
    message: _Words | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw = _NULL


class _Error(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error | str | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_error = msgspec.json.Decoder(_ErrorBody).decode
_decode_inner = msgspec.json.Decoder(_Error | str).decode


class AnswerReader:
    """What has come so far. Moments are whatever the caller's clock says, in seconds."""

    def __init__(self) -> None:
        self.first: float | None = None  # when the first text came
        self.last: float | None = None
        self.gaps: list[float] = []  # seconds between parts that hold text
        self.texts: list[str] = []
        self.usage: Usage | None = None
        self.finished = False
        self._cutter = FrameCutter()

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def feed(self, data: bytes, now: float) -> None:
        """Raises BadAnswer."""
        try:
            frames = self._cutter.feed(data)
        except FrameTooLong:
            raise BadAnswer("endless event") from None
        for line in frames.splitlines():
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def whole(self, body: bytes, now: float) -> None:
        """An answer that was not streamed. Raises BadAnswer."""
        chunk = _chunk(body)
        self.usage = chunk.usage
        for choice in chunk.choices:
            if choice.message is not None:
                self._text(choice.message.content, now)
            self.finished = self.finished or choice.finish_reason is not None

    def end(self) -> None:
        """The last byte has come. Raises BadAnswer where the answer is not whole."""
        if not self.finished:
            raise BadAnswer("stream cut short", f"after {len(self.texts)} parts of text")
        if not self.texts and not (self.usage and self.usage.completion_tokens):
            raise BadAnswer("empty answer")

    def _event(self, data: bytes, now: float) -> None:
        if data == DONE:
            self.finished = True
            return
        chunk = _chunk(data)
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            if choice.delta is not None:
                self._text(choice.delta.content, now)
            self.finished = self.finished or choice.finish_reason is not None

    def _text(self, text: str | None, now: float) -> None:
        if not text:
            return
        self.texts.append(text)
        if self.last is None:
            self.first = now
        else:
            self.gaps.append(now - self.last)
        self.last = now


def refusal(status: int, body: bytes) -> BadAnswer:
    """An answer whose status is not 200."""
    try:
        error = _decode_error(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        error = None
    detail = body[:300].decode(errors="replace")
    return BadAnswer(f"HTTP {status}{_named(error)}", detail, refused=status == HTTPStatus.TOO_MANY_REQUESTS)


def _chunk(data: bytes) -> _Chunk:
    try:
        chunk = _decode_chunk(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise BadAnswer("unreadable JSON", data[:300].decode(errors="replace")) from None
    if bytes(chunk.error) != b"null":
        try:
            error: _Error | str | None = _decode_inner(chunk.error)
        except msgspec.MsgspecError:
            error = None
        raise BadAnswer(f"error in the stream{_named(error)}", data[:300].decode(errors="replace"))
    return chunk


def _named(error: _Error | str | None) -> str:
    """The code or type of an error, short and plain enough to count by."""
    name = None if error is None or isinstance(error, str) else error.code or error.type
    plain = _PRINTABLE.sub(" ", str(name))[:_LONGEST_NAME].strip() if name else ""
    return f" {plain}" if plain else ""
