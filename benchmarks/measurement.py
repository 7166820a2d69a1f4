"""What one run leaves behind: a compact record for each request, and all gaps between tokens in one histogram.

Its size does not depend on how long answers are. Seconds throughout; moments are counted from the run's start.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

_STEP = 0.005  # a bucket is half a percent wide
_LEAST = 1e-6  # seconds; what is shorter counts as this
_MOST_KINDS = 64  # of errors
_OTHER = "other errors"


@dataclass(slots=True)
class Outcome:
    """One request. Without `error` it was answered whole."""

    began: float
    ended: float
    late: float = 0.0  # sent this long after it was due
    first: float | None = None  # from its start to the first text
    last: float | None = None  # from its start to the last text
    longest_gap: float = 0.0
    parts: int = 0  # of text
    input_tokens: int = 0
    output_tokens: int = 0
    seen: bool = False  # its picture had been sent before
    turn: int = 0
    error: str | None = None
    refused: bool = False  # with status 429: no room, or a limit of the key

    @property
    def e2e(self) -> float:
        return self.ended - self.began

    @property
    def per_token(self) -> float | None:
        """Time per output token: from the first text to the last, over the tokens after the first."""
        if self.first is None or self.last is None or self.output_tokens < 2:
            return None
        return (self.last - self.first) / (self.output_tokens - 1)


class Histogram:
    """Durations in buckets half a percent wide: any number of them in a few kilobytes."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0
        self.least = math.inf
        self.most = 0.0

    def add(self, seconds: float) -> None:
        self._buckets[math.floor(math.log(max(seconds, _LEAST) / _LEAST) / _STEP)] += 1
        self.count += 1
        self.total += seconds
        self.least = min(self.least, seconds)
        self.most = max(self.most, seconds)

    def percentile(self, share: float) -> float:
        """Seconds below which `share` (0 to 1) of them lie, exact to half a percent; 0 when there is none."""
        wanted, seen = share * self.count, 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return min(max(_LEAST * math.exp((bucket + 0.5) * _STEP), self.least), self.most)
        return self.most

    def points(self) -> list[tuple[float, float]]:
        """(seconds, share that is no longer), rising."""
        seen, curve = 0, []
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            curve.append((_LEAST * math.exp((bucket + 1) * _STEP), seen / self.count))
        return curve


@dataclass
class Measurement:
    """Everything that a run measured so far."""

    outcomes: list[Outcome] = field(default_factory=list)
    gaps: Histogram = field(default_factory=Histogram)
    errors: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)  # of a server that is full, or of a key's limit
    samples: dict[str, str] = field(default_factory=dict)  # kind of error or refusal -> what the first one said
    interrupted: int = 0  # under way when the run was stopped
    not_asked: int = 0  # later turns of conversations whose answer failed
    client_share: float = 0.0  # of one processor: what this process itself took meanwhile
    warm_up_errors: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def fail(self, outcome: Outcome, kind: str, detail: str, *, refused: bool = False) -> None:
        """Marks `outcome` as failed; there is room for many errors and for so many kinds."""
        outcome.refused = refused
        kinds = self.refusals if refused else self.errors
        if kind not in kinds and len(kinds) >= _MOST_KINDS:
            kind = _OTHER
        outcome.error = kind
        kinds[kind] += 1
        self.samples.setdefault(kind, detail)

    @property
    def answered(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error is None]

    @property
    def seconds(self) -> float:
        """From the first request's start to the last one's end."""
        if not self.outcomes:
            return 0.0
        return max(o.ended for o in self.outcomes) - min(o.began for o in self.outcomes)
