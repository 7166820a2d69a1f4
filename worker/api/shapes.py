"""How answers look on the wire: OpenAI's chat completions and completions, whole and as stream chunks.

Built as plain dicts on the hot path; `server.protocol.openai` documents them, and tests hold one against the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worker.answers.answer import AnswerPiece, TokenChoice, TokenScore
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
        self._header = header
        self._scored = scored

    @abstractmethod
    def opening(self, index: int) -> Json | None:
        """The choice of the chunk that announces answer `index`, where the kind has one."""

    @abstractmethod
    def piece(self, index: int, piece: AnswerPiece) -> Json:
        """The choice of one chunk."""

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
        header = self._header
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

    def opening(self, index: int) -> Json | None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def piece(self, index: int, piece: AnswerPiece) -> Json:
        return {
            "index": index,
            "delta": {"content": piece.text} if piece.text else {},
            "logprobs": self._logprobs(piece.scores) if piece.scores else None,
            "finish_reason": piece.finish_reason,
        }

    def choice(self, index: int, pieces: Sequence[AnswerPiece]) -> Json:
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None},
            "logprobs": self._logprobs([score for piece in pieces for score in piece.scores]) if self._scored else None,
            "finish_reason": pieces[-1].finish_reason,
        }

    def _logprobs(self, scores: Sequence[TokenScore]) -> Json:
        content = [
            {**_choice(score.drawn), "top_logprobs": [_choice(rival) for rival in score.rivals]} for score in scores
        ]
        return {"content": content, "refusal": None}


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
