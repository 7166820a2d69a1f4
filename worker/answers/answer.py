"""One answer: engine steps in, pieces of text out.

Characters are released once all their bytes are there, text once it can no longer belong to a stop string, and a
token's log probability together with the text that the token ends in. Without stop strings the text is what the
tokenizer's own `decode` gives for the whole answer (but for SentencePiece bytes that are no UTF-8: there `decode` looks
back). It knows nothing of HTTP or of how the tokens are drawn.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from worker.answers.stop_strings import StopStrings
from worker.answers.token_bytes import TokenBytes
from worker.engine.protocol import EngineOutput, TokenLogprobs


@dataclass(frozen=True)
class AnswerRules:
    """What the request says about its text."""

    stops: tuple[str, ...] = ()
    min_tokens: int = 0  # stop strings are not looked for in the text of the first `min_tokens` tokens
    skip_special_tokens: bool = True
    continues_text: bool = False  # a raw completion: a leading space belongs to the answer
    drop_first_space: bool = False  # a leading space belongs to the prompt format


@dataclass(frozen=True)
class TokenChoice:
    """A token that was or could have been drawn."""

    data: bytes
    logprob: float

    @property
    def text(self) -> str:
        """Readable, and different for different bytes: what is no UTF-8 by itself is written out as OpenAI does."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.data)


@dataclass(frozen=True)
class TokenScore:
    """A drawn token, where in the answer's text it begins (characters), and its rivals, most likely first."""

    drawn: TokenChoice
    offset: int
    rivals: tuple[TokenChoice, ...]


@dataclass(frozen=True)
class AnswerPiece:
    """What one step adds. With `finish_reason` it is the last, and the engine need not draw on.

    `tokens` are those drawn since the last piece that was not empty, and `held` the log probabilities that belong to
    the last tokens and come with later text: who has all tokens and the last `held` can carry the answer on.
    """

    text: str
    scores: tuple[TokenScore, ...] = ()
    finish_reason: Literal["stop", "length", "abort"] | None = None
    tokens: tuple[int, ...] = ()
    held: tuple[TokenLogprobs, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.text and not self.scores and self.finish_reason is None


NOTHING = AnswerPiece("")


class _Due(NamedTuple):
    """A score that waits for its token's text to be given out."""

    score: TokenScore
    end: int  # of the text, in characters
    logprobs: TokenLogprobs  # what the score was made from


class Answer:
    """The state of one answer's text. `completion_tokens` counts every drawn token, a stop token included."""

    def __init__(self, tokens: TokenBytes, rules: AnswerRules) -> None:
        self._tokens = tokens
        self._rules = rules
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = StopStrings(rules.stops)
        self._drop_space = rules.drop_first_space or (tokens.drops_first_space and not rules.continues_text)
        self._decoded = 0  # characters decoded so far
        self._released = 0  # of those, given out
        self._scores: deque[_Due] = deque()
        self._untold: list[int] = []  # tokens behind the last piece that was not empty
        self.completion_tokens = 0
        self.cached_tokens = 0

    def take(self, output: EngineOutput) -> AnswerPiece:
        """Takes the engine's next step."""
        if output.token_id is None:  # aborted: nothing more was drawn
            return AnswerPiece("", (), output.finish_reason)
        self.completion_tokens += 1
        self._untold.append(output.token_id)
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        begin = self._decoded
        fresh = "" if output.stop_token else self._decode(output.token_id)
        if output.logprobs is not None and not output.stop_token:
            score = self._score(output.token_id, output.logprobs, begin)
            self._scores.append(_Due(score, self._decoded, output.logprobs))
        scanned = self.completion_tokens > self._rules.min_tokens
        text, stopped = self._stops.feed(fresh) if scanned else (fresh, False)
        if stopped:
            return self._end(text, "stop")
        if output.finish_reason is not None:
            rest, stopped = self._flush(scanned)
            return self._end(text + rest, "stop" if stopped else output.finish_reason)
        self._released += len(text)
        return self._piece(text, self._due_scores())

    def replay(self, tokens: Sequence[int], held: Sequence[TokenLogprobs]) -> Iterator[AnswerPiece]:
        """Takes up an answer that was begun elsewhere: the pieces that its tokens made, none of them empty.

        `held` belong to the last tokens. A piece with a finish_reason says that the answer cannot be carried on.
        """
        before = len(tokens) - len(held)
        for place, token_id in enumerate(tokens):
            piece = self.take(EngineOutput(token_id, held[place - before] if place >= before else None))
            if not piece.empty:
                yield piece

    def _decode(self, token_id: int) -> str:
        if self._rules.skip_special_tokens and token_id in self._tokens.special_ids:
            return ""
        data = self._tokens[token_id]
        if self._drop_space and data:
            self._drop_space = False
            data = data.removeprefix(b" ")
        text = self._decoder.decode(data)
        self._decoded += len(text)
        return text

    def _flush(self, scanned: bool) -> tuple[str, bool]:
        """What is left at the end: the replacement character for a character cut off half way, and held text."""
        cut_off = self._decoder.decode(b"", final=True)
        self._decoded += len(cut_off)
        text, stopped = self._stops.feed(cut_off) if scanned else (cut_off, False)
        return (text, True) if stopped else (text + self._stops.flush(), False)

    def _score(self, token_id: int, logprobs: TokenLogprobs, begin: int) -> TokenScore:
        rivals = (TokenChoice(self._tokens[rival], logprob) for rival, logprob in logprobs.top)
        return TokenScore(TokenChoice(self._tokens[token_id], logprobs.logprob), begin, tuple(rivals))

    def _due_scores(self) -> tuple[TokenScore, ...]:
        due = []
        while self._scores and self._scores[0].end <= self._released:
            due.append(self._scores.popleft().score)
        return tuple(due)

    def _piece(
        self, text: str, scores: tuple[TokenScore, ...], reason: Literal["stop", "length", "abort"] | None = None
    ) -> AnswerPiece:
        if not text and not scores and reason is None:
            return NOTHING
        tokens, self._untold = tuple(self._untold), []
        return AnswerPiece(text, scores, reason, tokens, tuple(due.logprobs for due in self._scores))

    def _end(self, text: str, reason: Literal["stop", "length", "abort"]) -> AnswerPiece:
        """The last piece: scores of tokens that lie wholly behind the text's end are dropped with their text."""
        self._released += len(text)
        kept = tuple(
            due.score for due in self._scores if due.end <= self._released or due.score.offset < self._released
        )
        self._scores.clear()
        return self._piece(text, kept, reason)
