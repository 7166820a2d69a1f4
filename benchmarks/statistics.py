"""Figures from a measurement: distributions, rates, goodput. Pure arithmetic.

Percentiles interpolate between the two nearest values (Hyndman and Fan 1996, type 7), as numpy's default does. Goodput
is what DistServe (2401.09670) calls so: requests a second that met every stated limit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.measurement import Histogram, Measurement, Outcome

_UNITS = {"ms": 0.001, "s": 1.0}


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of ascending values; `share` is 0 to 1. Raises ValueError when there are none."""
    if not ordered:
        raise ValueError("no values")
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True)
class Distribution:
    """Seconds."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Distribution | None:
        """None when there are no values."""
        if not values:
            return None
        ordered = sorted(values)
        p50, p95, p99 = (percentile(ordered, share) for share in (0.5, 0.95, 0.99))
        return Distribution(len(ordered), math.fsum(ordered) / len(ordered), p50, p95, p99, ordered[0], ordered[-1])

    @staticmethod
    def of_histogram(gaps: Histogram) -> Distribution | None:
        if not gaps.count:
            return None
        p50, p95, p99 = (gaps.percentile(share) for share in (0.5, 0.95, 0.99))
        return Distribution(gaps.count, gaps.total / gaps.count, p50, p95, p99, gaps.least, gaps.most)


@dataclass(frozen=True)
class Limits:
    """What a request must keep to count as good, in seconds; None is no limit."""

    ttft: float | None = None  # time to first token
    itl: float | None = None  # every gap between tokens
    tpot: float | None = None  # mean time per output token
    e2e: float | None = None  # from request to the end of its answer

    @staticmethod
    def parse(text: str) -> Limits:
        """From "ttft=500ms,itl=80ms,e2e=10s". Raises ValueError."""
        found: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            match = re.fullmatch(r"(ttft|itl|tpot|e2e)=(\d+(?:\.\d+)?)(ms|s)", part)
            if match is None:
                raise ValueError(f"limit {part!r}: expected ttft, itl, tpot or e2e = a number and ms or s: ttft=500ms")
            found[match[1]] = float(match[2]) * _UNITS[match[3]]
        return Limits(**found)

    @property
    def stated(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def met_by(self, outcome: Outcome) -> bool:
        """An answer that cannot be held against a limit (no text, one token) meets what it has no figure for."""
        found = {"ttft": outcome.first, "itl": outcome.longest_gap, "tpot": outcome.per_token, "e2e": outcome.e2e}
        within = all(found[name] is None or found[name] <= limit for name, limit in self.stated.items())  # type: ignore[operator]
        return outcome.error is None and within


@dataclass(frozen=True)
class Summary:
    """One run in figures. Rates are per second of `seconds`; latencies are of answered requests only."""

    seconds: float
    answered: int
    failed: int
    refused: int  # with status 429, which a server that is full should answer; not among the failed
    interrupted: int
    not_asked: int
    errors: Mapping[str, int]
    refusals: Mapping[str, int]
    requests_rate: float
    input_rate: float  # tokens
    output_rate: float
    input_tokens: int
    output_tokens: int
    prompt_tokens_median: float
    good: int | None  # None where no limit was stated
    goodput: float | None
    ttft: Distribution | None
    ttft_new: Distribution | None  # of requests whose picture had not been sent before, where others' had
    ttft_seen: Distribution | None
    itl: Distribution | None
    tpot: Distribution | None
    e2e: Distribution | None
    late: Distribution | None

    @property
    def asked(self) -> int:
        """Requests that came to an end."""
        return self.answered + self.failed + self.refused

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(measured: Measurement, limits: Limits, *, streamed: bool = True) -> Summary:
    """Without streaming there is no first token to be timed: only end-to-end latency is."""
    answered, seconds = measured.answered, measured.seconds
    refused = sum(outcome.refused for outcome in measured.outcomes)
    rate = 1 / seconds if seconds > 0 else 0.0
    read, written = (sum(getattr(o, name) for o in answered) for name in ("input_tokens", "output_tokens"))
    good = sum(limits.met_by(outcome) for outcome in answered) if limits.stated else None
    timed = [o for o in answered if o.first is not None] if streamed else []
    firsts = {seen: [o.first for o in timed if o.seen is seen and o.first is not None] for seen in (False, True)}
    both = bool(firsts[True] and firsts[False])
    per_token = [] if not streamed else [o.per_token for o in answered if o.per_token is not None]
    prompts = sorted(float(outcome.input_tokens) for outcome in answered)
    return Summary(
        seconds=seconds,
        answered=len(answered),
        failed=len(measured.outcomes) - len(answered) - refused,
        refused=refused,
        interrupted=measured.interrupted,
        not_asked=measured.not_asked,
        errors=dict(measured.errors.most_common()),
        refusals=dict(measured.refusals.most_common()),
        requests_rate=len(answered) * rate,
        input_rate=read * rate,
        output_rate=written * rate,
        input_tokens=read,
        output_tokens=written,
        prompt_tokens_median=percentile(prompts, 0.5) if prompts else 0.0,
        good=good,
        goodput=None if good is None else good * rate,
        ttft=Distribution.of(firsts[False] + firsts[True]),
        ttft_new=Distribution.of(firsts[False]) if both else None,
        ttft_seen=Distribution.of(firsts[True]) if both else None,
        itl=Distribution.of_histogram(measured.gaps) if streamed else None,
        tpot=Distribution.of(per_token),
        e2e=Distribution.of([outcome.e2e for outcome in answered]),
        late=Distribution.of([outcome.late for outcome in measured.outcomes]),
    )
