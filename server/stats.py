"""What the dashboard shows of the recent past: rates, percentiles, the last requests. Bounded rings, no prompt text."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

Ended = Literal["complete", "error", "client_left", "broken"]

RECENT = 200  # requests listed
SAMPLES = 1000  # requests that percentiles are taken from
WINDOW = 60  # seconds that rates are averaged over


@dataclass
class RequestRecord:
    """One request's story; filled in while it lasts."""

    id: str
    route: str
    started_at: float = field(default_factory=time.time)  # unix seconds
    key: str = ""  # name of the client's key
    model: str = ""
    stream: bool = False
    images: int = 0
    asked_version: str = ""  # that the answer had to be computed on; empty: any
    session: str = ""  # a digest of the session that it asked to stay in
    status: int = 0
    worker: str = ""
    retries: int = 0
    carried_over: int = 0  # times that another worker took up the stream
    prompt_tokens: int = 0  # as the worker reported; 0: it did not
    completion_tokens: int = 0
    prepare_seconds: float = 0.0  # body, auth, pictures, admission
    first_byte_seconds: float = 0.0  # from arrival; 0: no answer began
    seconds: float = 0.0
    ended: Ended = "error"
    error: str = ""  # an error's code
    _clock: float = field(default_factory=time.perf_counter, repr=False)

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._clock

    def public(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}


class Stats:
    """Filled by the hot route, read by /admin/stats."""

    def __init__(self) -> None:
        self.recent: deque[RequestRecord] = deque(maxlen=RECENT)
        self._ttft: deque[float] = deque(maxlen=SAMPLES)
        self._latency: deque[float] = deque(maxlen=SAMPLES)
        self._requests = Rate(WINDOW)
        self._tokens = Rate(WINDOW)
        self._errors = Rate(WINDOW)
        self.total_requests = 0
        self.total_tokens = 0

    def add_tokens(self, count: int) -> None:
        self._tokens.add(count)
        self.total_tokens += count

    def add(self, record: RequestRecord) -> None:
        self.recent.append(record)
        self._requests.add(1)
        self.total_requests += 1
        if record.status >= 500 or record.ended == "broken":
            self._errors.add(1)
        if record.status == 200 and record.ended == "complete":
            self._latency.append(record.seconds)
            if record.stream:
                self._ttft.append(record.first_byte_seconds)

    def summary(self) -> dict[str, object]:
        return {
            "window_seconds": WINDOW,
            "requests_per_second": self._requests.per_second(),
            "tokens_per_second": self._tokens.per_second(),
            "errors_per_second": self._errors.per_second(),
            "requests_total": self.total_requests,
            "tokens_total": self.total_tokens,
            "ttft_seconds": percentiles(self._ttft),
            "latency_seconds": percentiles(self._latency),
            "history": {
                "requests": self._requests.history(),
                "tokens": self._tokens.history(),
                "errors": self._errors.history(),
            },
        }


class Rate:
    """Counts a second, over the last `window` whole seconds."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._counts = [0] * (window + 1)
        self._now = int(time.monotonic())

    def add(self, count: int) -> None:
        self._advance()
        self._counts[self._now % len(self._counts)] += count

    def per_second(self) -> float:
        return sum(self.history()) / self._window

    def history(self) -> list[int]:
        """Oldest second first; the running second is left out."""
        self._advance()
        size = len(self._counts)
        return [self._counts[(self._now + 1 + step) % size] for step in range(self._window)]

    def _advance(self) -> None:
        now = int(time.monotonic())
        size = len(self._counts)
        for second in range(self._now + 1, min(now, self._now + size) + 1):  # one turn clears the whole ring
            self._counts[second % size] = 0
        self._now = now


def percentiles(samples: Sequence[float]) -> dict[str, float | int | None]:
    """p50, p90, p99 and how many samples there were; None without any."""
    ordered = sorted(samples)
    if not ordered:
        return {"p50": None, "p90": None, "p99": None, "count": 0}
    at = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in _SHARES}
    return {**at, "count": len(ordered)}


_SHARES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
