"""Turns what happened into reports for the observer, and keeps the pace of the last steps.

An observer that raises is logged and costs no request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Literal, TypeVar

from worker.engine.observer import EngineObserver, RequestReport, StepReport
from worker.engine.protocol import EngineLoad, FinishReason
from worker.engine.scheduler import Step
from worker.engine.sequence import Sequence

logger = logging.getLogger(__name__)

_PACE_MEMORY = 0.9  # weight of the past in the moving average over steps
_Report = TypeVar("_Report")


class Reporter:
    def __init__(self, observer: EngineObserver) -> None:
        self._observer = observer
        self.tokens_per_second = 0.0  # computed in the last steps; 0 before the first

    def step_finished(
        self,
        step: Step,
        failures: int,
        drawn: int,
        load: EngineLoad,
        seconds: float,
        inter_token_seconds: tuple[float, ...],
    ) -> None:
        prefilled = sum(chunk.length for chunk in step.prefills)
        self._keep_pace((prefilled + len(step.decodes)) / max(seconds, 1e-6))
        report = StepReport(
            prefill_tokens=prefilled,
            decode_tokens=len(step.decodes),
            drawn_tokens=drawn,
            encoded_images=sum(encoding.end == encoding.features.tiles for encoding in step.encodings),
            encoded_tiles=sum(encoding.end - encoding.start for encoding in step.encodings),
            prefix_queries=step.prefix.queries,
            prefix_hits=step.prefix.hits,
            image_queries=step.images.queries,
            image_hits=step.images.hits,
            preemptions=step.preemptions,
            failures=failures,
            running=load.running,
            waiting=load.waiting,
            kv_usage=load.kv_usage,
            seconds=seconds,
            inter_token_seconds=inter_token_seconds,
        )
        self._tell(self._observer.step_finished, report)

    def request_finished(self, sequence: Sequence, outcome: FinishReason | Literal["error"]) -> None:
        moments = sequence.timings
        report = RequestReport(
            outcome=outcome,
            prompt_tokens=sequence.prompt_length,
            answer_tokens=sequence.answer_length,
            cached_tokens=sequence.cached,
            preemptions=sequence.preemptions,
            queue_seconds=_between(moments.arrived, moments.first_scheduled),
            prefill_seconds=_between(moments.first_scheduled, moments.first_token),
            decode_seconds=_between(moments.first_token, moments.last_token),
            inference_seconds=_between(moments.first_scheduled, moments.last_token),
            first_token_seconds=_between(moments.arrived, moments.first_token),
            total_seconds=time.monotonic() - moments.arrived,
        )
        self._tell(self._observer.request_finished, report)

    def _keep_pace(self, pace: float) -> None:
        past = self.tokens_per_second or pace
        self.tokens_per_second = _PACE_MEMORY * past + (1 - _PACE_MEMORY) * pace

    def _tell(self, method: Callable[[_Report], None], report: _Report) -> None:
        try:
            method(report)
        except Exception:
            logger.exception("the engine's observer failed")


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
