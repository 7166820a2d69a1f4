"""The worker's side of `server.protocol.continuing`: what a stream tells the controller, and what it is told back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from starlette.requests import Request

from server.protocol.continuing import (
    CONTINUE,
    MARK,
    MAX_CONTINUATION,
    MAX_TOKENS,
    RESUMABLE,
    Beginning,
    Continuation,
    HeldScore,
    Told,
)
from server.protocol.errors import ApiError, bad_request
from server.protocol.openai import ChatCompletionRequest, CompletionRequest
from worker.answers.answer import AnswerPiece
from worker.service import Service

Wanted = TypeVar("Wanted", ChatCompletionRequest, CompletionRequest)

_REFUSED = "continuation_refused"
_SEEDS = 2**63


def continuation_bytes(request: Request) -> int:
    """How many bytes of the body stand before the request itself. Raises ApiError 403 for who is not the controller."""
    given = request.headers.get(CONTINUE)
    if given is None:
        return 0
    if not request.state.from_controller:
        raise ApiError(403, f"{CONTINUE} is for the controller alone.", type="permission_error", code=_REFUSED)
    if not (given.isascii() and given.isdigit() and len(given) < 10 and 0 < int(given) <= MAX_CONTINUATION):
        raise bad_request(f"{CONTINUE}: expected 1 to {MAX_CONTINUATION} bytes.", code=_REFUSED)
    return int(given)


def read_continuation(data: bytes) -> Continuation:
    """Raises ApiError 400."""
    try:
        read = msgspec.json.decode(data, type=Continuation)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise bad_request(f"{CONTINUE}: {error}", code=_REFUSED) from None
    if len({told.index for told in read.choices}) < len(read.choices):
        raise bad_request(f"{CONTINUE}: a choice stands there twice.", code=_REFUSED)
    if sum(len(told.tokens) for told in read.choices) > MAX_TOKENS:
        raise bad_request(f"{CONTINUE}: more than {MAX_TOKENS} tokens.", code=_REFUSED)
    return read


class Journey:
    """Where a request stands between workers. Nothing of it for a request that no controller sent."""

    def __init__(self, request: Request, body: Wanted, service: Service) -> None:
        """Raises ApiError: 409 where the answer began on other weights, 400 for what cannot be carried on."""
        self.continuation: Continuation | None = request.state.continuation
        self.resumable = bool(body.stream and request.state.from_controller and RESUMABLE in request.headers)
        if self.continuation is not None and not self.resumable:
            raise bad_request(f"{CONTINUE} is for streams that can be carried on again.", code=_REFUSED)
        if self.continuation is not None:
            _check(self.continuation, service.card.version, service.sampler.vocab_size)

    @property
    def told(self) -> Mapping[int, Told]:
        return {told.index: told for told in self.continuation.choices} if self.continuation is not None else {}

    def with_seed(self, body: Wanted) -> Wanted:
        """Draws can be repeated elsewhere only if their seed is known there."""
        if self.continuation is not None:
            return body.model_copy(update={"seed": self.continuation.beginning.seed})
        if self.resumable and body.seed is None:
            return body.model_copy(update={"seed": random.randrange(_SEEDS)})
        return body


def _check(continuation: Continuation, version: str, vocabulary: int) -> None:
    if continuation.beginning.version != version:
        raise ApiError(409, f"The answer began on other weights than {version!r}.", code="version_mismatch")
    for told in continuation.choices:
        if max(told.tokens, default=0) >= vocabulary or len(told.held) > len(told.tokens):
            raise bad_request(f"{CONTINUE}: choice {told.index} does not fit this model.", code=_REFUSED)


class Trail:
    """The lines for the controller in front of a stream's frames."""

    def __init__(self, beginning: Beginning) -> None:
        self._beginning: Beginning | None = beginning
        self._untold: dict[int, list[int]] = {}

    def add(self, index: int, piece: AnswerPiece) -> None:
        """A piece of which nothing is sent yet."""
        self._untold.setdefault(index, []).extend(piece.tokens)

    def lines(self, index: int, piece: AnswerPiece) -> bytes:
        """To stand before the frame that tells of the piece."""
        tokens = [*self._untold.pop(index, ()), *piece.tokens]
        held = [HeldScore(scores.logprob, list(scores.top)) for scores in piece.held]
        line = MARK + msgspec.json.encode(Told(index, tokens, held, piece.finish_reason is not None)) + b"\n"
        if self._beginning is None:
            return line
        beginning, self._beginning = self._beginning, None
        return MARK + msgspec.json.encode(beginning) + b"\n" + line
