"""Reads what a worker sends, and believes none of it: whole answers, event streams, errors."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import msgspec

from server.logs import log
from server.protocol.call_headers import DEADLINE_EXCEEDED
from server.protocol.continuing import RESUMABLE
from server.protocol.errors import ApiError
from server.reply import Headers
from server.sse import FrameCutter, Usage
from server.worker_client import Answer

_MAX_ERROR_BODY = 1024 * 1024


class Failed(Exception):
    """An attempt at a worker failed, and another may be made. `died`: the worker, or the way to it, was lost."""

    def __init__(self, reason: str, *, died: bool = False, may_repeat_here: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.died = died
        self.may_repeat_here = may_repeat_here
        self.answer: WholeAnswer | None = None  # what to pass on if nobody else can answer
        self.frame = b""  # likewise, within a stream


@dataclass(frozen=True)
class WholeAnswer:
    """An answer that is not a stream."""

    status: int
    body: bytes
    headers: Headers

    @property
    def error_code(self) -> str:
        """The code of an error in OpenAI's shape, or its type; empty where the body has another shape."""
        try:
            detail = msgspec.json.decode(self.body, type=_ErrorAnswer).error
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return ""
        return str(detail.code or detail.type or "error")[:64]

    @cached_property
    def completion(self) -> Completion | None:
        """None where the body is nothing that was asked for."""
        try:
            answer = msgspec.json.decode(self.body, type=Completion)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        known = answer.choices is not None or answer.tokens is not None or answer.prompt is not None
        return answer if known else None


class _ErrorAnswer(msgspec.Struct):
    class Detail(msgspec.Struct):
        message: str
        type: object = None
        code: object = None

    error: Detail


class Completion(msgspec.Struct):
    """A completion has choices; tokenizing answers with tokens, its reverse with a prompt."""

    choices: list[msgspec.Raw] | None = None
    tokens: list[int] | None = None
    prompt: str | None = None
    usage: Usage | None = None


async def read_whole(response: Answer, most_bytes: int) -> WholeAnswer:
    """Raises Failed for an answer that no client should see, ApiError for a refusal that others would repeat."""
    status = response.status
    limit = most_bytes if status == 200 else _MAX_ERROR_BODY
    pieces: list[bytes] = []
    size = 0
    while piece := await response.read():
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise Failed("bad_answer")
    answer = WholeAnswer(status, pieces[0] if len(pieces) == 1 else b"".join(pieces), _passed_headers(response))
    if status in (401, 403):
        log(logging.ERROR, "a worker refused the controller's secret", status=status)
        raise Failed("secret_refused")
    if status == 200 and response.content_type == "application/json" and answer.completion is not None:
        return answer
    if 400 <= status < 600 and answer.error_code:
        if status in (502, 503, 504) and answer.error_code != DEADLINE_EXCEEDED:  # which no other can help
            failed = Failed(f"status_{status}")
            failed.answer = answer
            raise failed
        return answer
    if 400 <= status < 500:
        raise ApiError(status, f"The worker refused the request with status {status}.", code="worker_error")
    raise Failed("bad_answer")


class Stream:
    """An event stream, in whole frames."""

    def __init__(self, response: Answer) -> None:
        self.resumable = bool(response.header(RESUMABLE))
        self._response = response
        self._cutter = FrameCutter()

    @property
    def over(self) -> bool:
        """Whether nothing more comes, as far as is known already."""
        return self._response.exhausted

    async def next(self) -> bytes:
        """At least one whole frame; empty at the end. Raises Lost, Garbled and FrameTooLong."""
        while data := await self._response.read():
            if frames := self._cutter.feed(data):
                return frames
        return b""


def _passed_headers(response: Answer) -> Headers:
    after = response.header("Retry-After")
    return [(b"retry-after", after.encode())] if after.isdigit() else []
