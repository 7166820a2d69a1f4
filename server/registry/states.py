"""The states of a worker, as operators see them."""

from __future__ import annotations

from typing import Literal, get_args

WorkerState = Literal[
    "joining",  # registered, no heartbeat yet; takes requests
    "healthy",
    "slow_start",  # takes a growing share of the requests after joining or recovering
    "open",  # its breaker is open: too many requests failed there, or it did far worse than its peers
    "half_open",  # its breaker lets one request through, to see
    "unhealthy",  # it says itself that it cannot answer
    "draining",  # takes no new requests and finishes what it has in hand
    "drained",  # has nothing in hand from any controller: safe to stop
    "lost",  # its lease ran out
]
STATES: tuple[WorkerState, ...] = get_args(WorkerState)
