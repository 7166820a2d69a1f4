"""What the engine tells whoever measures it. Knows no metric names' owner: `worker` maps these onto its registry.

Called on the engine's thread, between steps: take the numbers and return.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from worker.engine.protocol import FinishReason


@dataclass(frozen=True)
class StepReport:
    """One step. Counters add up; the others are the state after the step."""

    prefill_tokens: int  # prompt_tokens computed, those computed anew after a preemption included
    decode_tokens: int  # generation_tokens computed one at a time
    drawn_tokens: int  # generation_tokens given out
    encoded_images: int
    encoded_tiles: int
    prefix_queries: int  # prefix_cache_queries: prompt tokens of the requests that began
    prefix_hits: int  # prefix_cache_hits: how many of those were in the KV cache
    image_queries: int  # mm_cache_queries: images that features were wanted of
    image_hits: int  # mm_cache_hits: how many of those were there, or under way for another request
    preemptions: int  # num_preemptions
    failures: int  # requests that ended with an error in this step
    running: int  # num_requests_running
    waiting: int  # num_requests_waiting
    kv_usage: float  # kv_cache_usage_perc, 0..1
    seconds: float  # from picking the step to its tokens
    inter_token_seconds: tuple[float, ...]  # inter_token_latency_seconds: for each token drawn that was not a first


@dataclass(frozen=True)
class RequestReport:
    """One request that has ended. Seconds that do not apply, for want of a step or a token, are None."""

    outcome: FinishReason | Literal["error"]  # request_success{finished_reason}, "error" aside
    prompt_tokens: int  # request_prompt_tokens
    answer_tokens: int  # request_generation_tokens
    cached_tokens: int  # prompt tokens that were not computed anew
    preemptions: int
    queue_seconds: float | None  # request_queue_time_seconds: arrival to first step
    prefill_seconds: float | None  # request_prefill_time_seconds: first step to first token
    decode_seconds: float | None  # request_decode_time_seconds: first token to last
    inference_seconds: float | None  # request_inference_time_seconds: first step to last token
    first_token_seconds: float | None  # time_to_first_token_seconds: arrival to first token
    total_seconds: float  # e2e_request_latency_seconds: arrival to end

    @property
    def seconds_per_token(self) -> float | None:
        """request_time_per_output_token_seconds: of the tokens after the first."""
        if self.decode_seconds is None or self.answer_tokens < 2:
            return None
        return self.decode_seconds / (self.answer_tokens - 1)


class EngineObserver(Protocol):
    def step_finished(self, report: StepReport) -> None: ...

    def request_finished(self, report: RequestReport) -> None: ...


class SilentObserver:
    """Measures nothing."""

    def step_finished(self, report: StepReport) -> None:
        pass

    def request_finished(self, report: RequestReport) -> None:
        pass
