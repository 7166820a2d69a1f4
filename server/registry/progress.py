"""What a worker did lately, from the running totals in its reports. Plain memory, bounded in number and in time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from server.protocol.registration import WorkerTotals

_RATE_SECONDS = 60.0  # that tokens a second are averaged over
_HIT_SECONDS = 900.0  # that hit rates are taken over: caches are asked at the beginning of requests only
_STEP = 5.0  # seconds between two totals that are kept
_LEAST_SECONDS = 1.0  # a rate over less would tell of the heartbeat's rhythm


@dataclass(frozen=True)
class WorkerPace:
    """None: the worker does not tell, or nothing was asked of the cache."""

    prompt_tokens_per_second: float | None = None
    answer_tokens_per_second: float | None = None
    prefix_hit_rate: float | None = None  # of prompt tokens, 0 to 1
    image_hit_rate: float | None = None  # of pictures


class Progress:
    def __init__(self, totals: WorkerTotals | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: deque[tuple[float, WorkerTotals]] = deque(maxlen=int(_HIT_SECONDS / _STEP) + 2)
        self._last: tuple[float, WorkerTotals] | None = None
        self.note(totals)

    def note(self, totals: WorkerTotals | None) -> None:
        """A report's totals."""
        if totals is None or (self._last is not None and totals.answer_tokens < self._last[1].answer_tokens):
            self._kept.clear()  # another process under the same name begins anew
            self._last = None
        if totals is None:
            return
        now = self._clock()
        self._last = (now, totals)
        if not self._kept or now - self._kept[-1][0] >= _STEP:
            self._kept.append(self._last)
        while len(self._kept) > 1 and self._kept[1][0] <= now - _HIT_SECONDS:
            self._kept.popleft()

    @property
    def pace(self) -> WorkerPace:
        if self._last is None:
            return WorkerPace()
        now, last = self._last
        then, first = next((one for one in self._kept if one[0] >= now - _RATE_SECONDS), self._last)
        passed = now - then
        oldest = self._kept[0][1]
        return WorkerPace(
            (last.prompt_tokens - first.prompt_tokens) / passed if passed >= _LEAST_SECONDS else None,
            (last.answer_tokens - first.answer_tokens) / passed if passed >= _LEAST_SECONDS else None,
            _share(last.prefix_hits - oldest.prefix_hits, last.prefix_queries - oldest.prefix_queries),
            _share(last.image_hits - oldest.image_hits, last.image_queries - oldest.image_queries),
        )


def _share(hits: int, queries: int) -> float | None:
    return min(1.0, max(0, hits) / queries) if queries > 0 else None
