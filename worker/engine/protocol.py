"""What every engine answers to: requests of token ids and image tensors in, tokens out.

An engine knows nothing of text: tokenizing, stop strings and UTF-8 belong to `worker.answers`. All methods are called
from the event loop; an engine does its work elsewhere and never blocks the loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

    from model.images import PreparedImage

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn. Names and meanings are OpenAI's and vLLM's.

    The random draw is a function of (`seed`, position in the answer) alone, so that a request repeated or resumed
    elsewhere draws the same, whatever batch it sits in.
    """

    max_tokens: int
    seed: int  # unsigned 64 bit
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # 1: off
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # 0: off
    min_tokens: int = 0  # no end token before this many
    stop_token_ids: frozenset[int] = frozenset()  # the end-of-sequence ids included, unless ignore_eos
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and answer, as in Hugging Face
    logprobs: int | None = None  # None: off; else the number of alternatives besides the drawn token


class Constraint(Protocol):
    """What one answer may say, token by token: the state of a grammar. Called on the engine's thread.

    It follows the answer by position, so a preempted answer, whose drawn tokens are computed anew but not drawn anew,
    goes on where it was; an answer that begins anew begins at position 0.
    """

    end_token_id: int  # one that may always end an answer; among the request's stop tokens

    def allowed(self, position: int) -> np.ndarray | None:
        """The tokens that may stand at `position` of the answer, packed uint8, token 0 in the lowest bit; it may wait,
        but never for long. None: the answer cannot go on, and is to end; the constraint remembers why."""

    def take(self, token_id: int) -> None:
        """The token that was drawn at that position."""

    def fail(self) -> None:
        """None of the allowed tokens can be drawn: the answer is to end."""


@dataclass(frozen=True)
class EngineRequest:
    """One answer to make. Each image stands in `token_ids` as a run of `layout.tokens` image token ids.

    An answer that was begun elsewhere goes on behind the tokens in `answer`: they count for limits, penalties and the
    draws' positions as if they had been drawn here, and are not yielded again. Its constraint has taken them already.
    """

    id: str
    token_ids: tuple[int, ...]
    images: tuple[PreparedImage, ...]
    sampling: SamplingParams
    cache_salt: str = ""  # only requests of the same salt share what the caches hold
    constraint: Constraint | None = None  # of this answer alone
    answer: tuple[int, ...] = ()  # fewer than max_tokens, and none that ends it


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of probabilities after penalties, bias and constraint, before temperature and truncation."""

    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, logprob), most likely first; tokens that cannot be drawn left out


@dataclass(frozen=True)
class EngineOutput:
    """One step of one answer. A stop token is reported as the last token with `finish_reason` "stop".

    Only an answer that ends with "abort" (the engine stops) has no token in its last output.
    """

    token_id: int | None
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_token: bool = False  # token_id is the stop token itself: no part of the answer's text
    cached_tokens: int = 0  # prompt tokens that were not computed anew
    queue_seconds: float = 0.0  # with the first token: from arrival to the first step
    prefill_seconds: float = 0.0  # likewise, from there to the token


@dataclass(frozen=True)
class EngineLoad:
    """What an engine is doing now."""

    running: int
    waiting: int
    outstanding_tokens: int  # prompt tokens yet to compute + answer tokens yet to draw, running and waiting
    kv_usage: float  # 0..1 of the KV blocks
    kv_tokens: int  # capacity of the KV cache in tokens
    outstanding_prompt_tokens: int = 0  # of outstanding_tokens, those that prompts have yet to compute
    feature_images: int = 0  # kept in the vision-feature cache, needed by nobody now
    feature_bytes: int = 0  # of those
    features_held: int = 0  # images whose features running requests hold
    block_checks: int = 0  # steps after which the books of blocks and features were checked
    block_faults: int = 0  # of those, steps after which they did not agree


class EngineError(Exception):
    """A request cannot be run; the message is fit for the client."""


class EngineFailure(EngineError):
    """The engine failed while it ran the request, by no fault of the request; the message is fit for the client."""


class EngineOverloaded(EngineError):
    """The waiting queue is full."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds


class Engine(Protocol):
    """The contract of `native` and `vllm`."""

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together."""

    async def start(self) -> None:
        """Makes the engine ready for requests."""

    async def stop(self) -> None:
        """Ends every request with "abort" and frees what the engine holds."""

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Yields tokens as they are drawn. Closing the iterator cancels the request within one step.

        Raises EngineError when the request cannot fit, EngineOverloaded when the queue is full.
        """

    def load(self) -> EngineLoad:
        """A snapshot; cheap enough to take at every heartbeat."""

    @property
    def healthy(self) -> bool:
        """False once the engine cannot go on (its thread died)."""
