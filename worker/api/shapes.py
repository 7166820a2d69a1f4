"""How answers look on the wire: OpenAI's chat completions and completions, whole and as stream chunks.

Built as plain dicts on the hot path; `server.protocol.openai` documents them, and tests hold one against the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from worker.answers.answer import AnswerPiece, TokenChoice, TokenScore
from worker.answers.tool_calls import CallArguments, CallBegins, CallEvent, CallReader, Words
from worker.generation import TokenCounts

Json = dict[str, Any]


@dataclass(frozen=True)
class AnswerHeader:
    """What stands in every chunk of one response."""

    id: str
    created: int
    model: str
    version: str


class AnswerShape(ABC):
    """One kind of response."""

    chunk_object: str
    whole_object: str

    def __init__(self, header: AnswerHeader, *, scored: bool) -> None:
        self.header = header
        self._scored = scored

    @abstractmethod
    def opening(self, index: int) -> Json | None:
        """The choice of the chunk that announces answer `index`, where the kind has one."""

    @abstractmethod
    def piece(self, index: int, piece: AnswerPiece) -> Json | None:
        """The choice of one chunk; None where the piece has nothing to tell yet."""

    @abstractmethod
    def choice(self, index: int, pieces: Sequence[AnswerPiece]) -> Json:
        """A whole answer."""

    def chunk(self, choices: list[Json], usage: Json | None = None) -> Json:
        message = self._message(self.chunk_object, choices)
        if usage is not None:
            message["usage"] = usage
        return message

    def whole(self, answers: Sequence[Sequence[AnswerPiece]], usage: TokenCounts) -> Json:
        choices = [self.choice(index, pieces) for index, pieces in enumerate(answers)]
        return {**self._message(self.whole_object, choices), "usage": usage_json(usage)}

    def _message(self, kind: str, choices: list[Json]) -> Json:
        header = self.header
        return {
            "id": header.id,
            "object": kind,
            "created": header.created,
            "model": header.model,
            "system_fingerprint": header.version,
            "choices": choices,
        }


class ChatShape(AnswerShape):
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(self, header: AnswerHeader, *, scored: bool, calls: CallShape | None = None) -> None:
        super().__init__(header, scored=scored)
        self._calls = calls

    def opening(self, index: int) -> Json | None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def piece(self, index: int, piece: AnswerPiece) -> Json | None:
        delta: Json = {"content": piece.text} if piece.text else {}
        reason: str | None = piece.finish_reason
        if self._calls is not None:
            delta, reason = self._calls.delta(index, piece)
        if not delta and not piece.scores and reason is None:
            return None
        return {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(piece.scores) if piece.scores else None,
            "finish_reason": reason,
        }

    def choice(self, index: int, pieces: Sequence[AnswerPiece]) -> Json:
        text = "".join(piece.text for piece in pieces)
        reason: str | None = pieces[-1].finish_reason
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if self._calls is not None:
            said, reason = self._calls.message(index, AnswerPiece(text, (), pieces[-1].finish_reason))
            message |= said
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs([score for piece in pieces for score in piece.scores]) if self._scored else None,
            "finish_reason": reason,
        }

    def _logprobs(self, scores: Sequence[TokenScore]) -> Json:
        content = [
            {**_choice(score.drawn), "top_logprobs": [_choice(rival) for rival in score.rivals]} for score in scores
        ]
        return {"content": content, "refusal": None}


class CallShape:
    """Calls of tools in the answers of one response. An answer that called ends with "tool_calls"; one whose request
    named the function with "stop", as OpenAI and vLLM have it."""

    def __init__(self, make_reader: Callable[[], CallReader], *, named: bool) -> None:
        self._make_reader = make_reader
        self._named = named
        self._readers: dict[int, CallReader] = {}

    def delta(self, index: int, piece: AnswerPiece) -> tuple[Json, str | None]:
        """What a chunk adds, and its finish_reason."""
        events, reason = self._read(index, piece)
        delta: Json = {}
        if words := "".join(event.text for event in events if isinstance(event, Words)):
            delta["content"] = words
        if calls := [_call_delta(event) for event in events if not isinstance(event, Words)]:
            delta["tool_calls"] = calls
        return delta, reason

    def message(self, index: int, piece: AnswerPiece) -> tuple[Json, str | None]:
        """The same for a whole answer in one piece."""
        events, reason = self._read(index, piece)
        words = "".join(event.text for event in events if isinstance(event, Words))
        calls = [_call(event, events) for event in events if isinstance(event, CallBegins)]
        return {"content": words or (None if calls else ""), **({"tool_calls": calls} if calls else {})}, reason

    def _read(self, index: int, piece: AnswerPiece) -> tuple[list[CallEvent], str | None]:
        reader = self._readers.get(index)
        if reader is None:
            reader = self._readers[index] = self._make_reader()
        events = reader.feed(piece.text, last=piece.finish_reason is not None)
        called = piece.finish_reason == "stop" and reader.calls and not self._named
        return events, "tool_calls" if called else piece.finish_reason


def _call_delta(event: CallBegins | CallArguments) -> Json:
    if isinstance(event, CallArguments):
        return {"index": event.index, "function": {"arguments": event.text}}
    function = {"name": event.name, "arguments": ""}
    return {"index": event.index, "id": event.id, "type": "function", "function": function}


def _call(begun: CallBegins, events: Sequence[CallEvent]) -> Json:
    parts = (event.text for event in events if isinstance(event, CallArguments) and event.index == begun.index)
    return {"id": begun.id, "type": "function", "function": {"name": begun.name, "arguments": "".join(parts)}}


class CompletionShape(AnswerShape):
    chunk_object = "text_completion"
    whole_object = "text_completion"

    def opening(self, index: int) -> Json | None:
        return None

    def piece(self, index: int, piece: AnswerPiece) -> Json:
        return {
            "index": index,
            "text": piece.text,
            "logprobs": self._logprobs(piece.scores) if piece.scores else None,
            "finish_reason": piece.finish_reason,
        }

    def choice(self, index: int, pieces: Sequence[AnswerPiece]) -> Json:
        return {
            "index": index,
            "text": "".join(piece.text for piece in pieces),
            "logprobs": self._logprobs([score for piece in pieces for score in piece.scores]) if self._scored else None,
            "finish_reason": pieces[-1].finish_reason,
        }

    def _logprobs(self, scores: Sequence[TokenScore]) -> Json:
        return {
            "tokens": [score.drawn.text for score in scores],
            "token_logprobs": [score.drawn.logprob for score in scores],
            "top_logprobs": [{rival.text: rival.logprob for rival in (*score.rivals, score.drawn)} for score in scores],
            "text_offset": [score.offset for score in scores],
        }


def usage_json(counts: TokenCounts) -> Json:
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.completion,
        "total_tokens": counts.prompt + counts.completion,
        "prompt_tokens_details": {"cached_tokens": counts.cached, "image_tokens": counts.image},
    }


def _choice(choice: TokenChoice) -> Json:
    return {"token": choice.text, "logprob": choice.logprob, "bytes": list(choice.data)}
