"""Durations counted in fixed buckets: many can be kept in little memory, added up over processes, and asked for
percentiles. It knows nothing of requests.

Each bucket is 9% wider than the one before, so a percentile is off by less than that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

_FIRST = 0.0001  # seconds: the upper edge of bucket 0
_PER_OCTAVE = 8
MOST = 1 + 24 * _PER_OCTAVE  # buckets; the last holds everything above 28 minutes

Histogram = dict[int, int]  # bucket -> how many
_SHARES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


def bucket_of(seconds: float) -> int:
    return 0 if seconds <= _FIRST else min(MOST - 1, math.ceil(math.log2(seconds / _FIRST) * _PER_OCTAVE))


def add_up(into: Histogram, other: Mapping[int, int]) -> None:
    for bucket, count in other.items():
        into[bucket] = into.get(bucket, 0) + count


def percentiles(histogram: Mapping[int, int]) -> dict[str, float | int | None]:
    """p50, p90 and p99 in seconds, and how many durations there were; None without any."""
    count = sum(histogram.values())
    return {**{name: _quantile(histogram, share * count) if count else None for name, share in _SHARES}, "count": count}


def _quantile(histogram: Mapping[int, int], rank: float) -> float:
    """The duration that `rank` of all do not exceed, by even spread within its bucket."""
    below = 0
    for bucket in sorted(histogram):
        here = histogram[bucket]
        if below + here >= rank:
            return _FIRST * 2 ** ((bucket - 1 + (rank - below) / here) / _PER_OCTAVE)
        below += here
    raise AssertionError("a rank is at most the count")
