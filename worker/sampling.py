"""From a request's fields to how the engine draws tokens; adds what the checkpoint knows: vocabulary, end tokens."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from server.protocol.errors import bad_request
from server.protocol.openai import ChatCompletionRequest, CompletionRequest
from worker.engine.protocol import SamplingParams

_LEAST_TOP_P = 1e-6  # OpenAI accepts 0, which means: only the likeliest token
_SEEDS = 2**64


@dataclass(frozen=True)
class Sampler:
    """What one checkpoint adds to a request's sampling fields."""

    vocab_size: int
    end_token_ids: frozenset[int]

    def params(
        self, request: ChatCompletionRequest | CompletionRequest, max_tokens: int, *, constrained: bool = False
    ) -> list[SamplingParams]:
        """One for each of the `n` answers: with seeds `seed`, `seed + 1`, ... Raises ApiError 400.

        A constrained answer ends where its form is complete, so its end tokens count whatever `ignore_eos` says.
        """
        stop_ids = frozenset(request.stop_token_ids or ())
        self.check_ids("stop_token_ids", stop_ids)
        self.check_ids("logit_bias", request.logit_bias or {})
        min_tokens = request.min_tokens or 0
        if min_tokens > max_tokens:
            raise bad_request(
                f"min_tokens: {min_tokens} is more than the {max_tokens} tokens that the answer may have.",
                param="min_tokens",
            )
        ends = frozenset() if request.ignore_eos and not constrained else self.end_token_ids
        seed = random.getrandbits(64) if request.seed is None else request.seed
        return [
            SamplingParams(
                max_tokens=max_tokens,
                seed=(seed + index) % _SEEDS,
                temperature=_given(request.temperature, 1.0),
                top_p=max(_given(request.top_p, 1.0), _LEAST_TOP_P),
                top_k=max(request.top_k or 0, 0),
                min_p=request.min_p or 0.0,
                min_tokens=min_tokens,
                stop_token_ids=stop_ids | ends,
                logit_bias=request.logit_bias or {},
                frequency_penalty=request.frequency_penalty or 0.0,
                presence_penalty=request.presence_penalty or 0.0,
                repetition_penalty=_given(request.repetition_penalty, 1.0),
                logprobs=request.alternatives,
            )
            for index in range(request.answers)
        ]

    def check_ids(self, param: str, token_ids: Iterable[int]) -> None:
        """Raises ApiError 400 for an id beyond the vocabulary."""
        if (outside := next((one for one in token_ids if one >= self.vocab_size), None)) is not None:
            raise bad_request(
                f"{param}: token id {outside} does not exist, the vocabulary has {self.vocab_size}.", param=param
            )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
