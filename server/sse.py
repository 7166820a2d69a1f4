"""Server-sent events as OpenAI's API uses them: cut into whole frames, and read for what the relay must know.

Bytes go on as they came; this only decides where a frame ends, so that nothing of ours is ever put inside one.
"""

from __future__ import annotations

import msgspec

MAX_FRAME = 4 * 1024 * 1024  # bytes of one unfinished frame
DONE = b"[DONE]"
DONE_FRAME = b"data: [DONE]\n\n"


class FrameTooLong(ValueError):
    """An event without end: no event stream of a model."""


class FrameCutter:
    """feed(bytes) -> as many whole frames as there are, terminators included."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Raises FrameTooLong."""
        data = self._rest + data if self._rest else data
        end = max(_after(data, b"\n\n"), _after(data, b"\r\n\r\n"))
        whole, self._rest = data[:end], data[end:]
        if len(self._rest) > MAX_FRAME:
            raise FrameTooLong
        return whole


def _after(data: bytes, terminator: bytes) -> int:
    """Where the last `terminator` ends; 0 without one."""
    at = data.rfind(terminator)
    return at + len(terminator) if at >= 0 else 0


_NULL = msgspec.Raw(b"null")


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw = _NULL


_decode = msgspec.json.Decoder(_Chunk).decode


class StreamProgress:
    """What a stream has told so far."""

    def __init__(self) -> None:
        self.done = False  # the end mark came
        self.failed = False  # the worker itself reported an error
        self.garbled = False  # data came that is no chunk of an answer
        self.error_code = ""
        self.usage: Usage | None = None
        self.pieces = 0  # parts of text seen: about one a token
        self._open: set[int] = set()
        self._finished: set[int] = set()

    @property
    def complete(self) -> bool:
        """By the end mark; or, where a server sends none, because every choice has its finish_reason."""
        return self.done or self.failed or bool(self._finished and self._open <= self._finished)

    def read(self, frames: bytes) -> int:
        """Takes note of whole frames; returns how many parts of text they hold."""
        before = self.pieces
        for line in frames.splitlines():
            if line.startswith(b"data:"):
                self._read_data(line[5:].strip())
        return self.pieces - before

    def _read_data(self, data: bytes) -> None:
        if data == DONE:
            self.done = True
            return
        try:
            chunk = _decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self.garbled = True
            return
        if bytes(chunk.error) != b"null":
            self.failed = True
            self.error_code = _code_of(chunk.error)
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            self._open.add(choice.index)
            if choice.finish_reason is not None:
                self._finished.add(choice.index)
            if choice.text or (choice.delta and (choice.delta.content or choice.delta.tool_calls)):
                self.pieces += 1


class _Error(msgspec.Struct):
    code: object = None


def _code_of(error: msgspec.Raw) -> str:
    try:
        return str(msgspec.json.decode(error, type=_Error).code or "")[:64]
    except msgspec.MsgspecError:
        return ""


def error_frame(body: bytes) -> bytes:
    """`body` is one line of JSON."""
    return b"data: " + body + b"\n\n"
