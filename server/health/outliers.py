"""Outlier ejection: which of the workers of one model do far worse than the others.

Compared are the share of failed attempts and the median time to the first token. Never are more workers set aside than
a share of them, since what goes wrong everywhere is no worker's own fault.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.health.rules import HealthRules

Fault = Literal["failures", "slow"]
_LEAST_PEERS = 2


@dataclass(frozen=True)
class Standing:
    """One worker over the window."""

    id: str
    in_use: bool  # its breaker is closed
    attempts: int = 0
    failures: int = 0
    first_token_seconds: float | None = None  # median; None: too few were measured

    @property
    def failure_rate(self) -> float:
        return self.failures / self.attempts if self.attempts else 0.0


@dataclass(frozen=True)
class Outlier:
    id: str
    fault: Fault


def find_outliers(standings: Sequence[Standing], rules: HealthRules) -> list[Outlier]:
    """The workers to set aside now, the worst first."""
    allowed = int(rules.ejected_share * len(standings)) - sum(not one.in_use for one in standings)
    if allowed <= 0:
        return []
    judged = [one for one in standings if one.in_use and one.attempts >= rules.least_attempts]
    found = [
        (badness, Outlier(one.id, fault))
        for one in judged
        for badness, fault in [_worst(one, [peer for peer in judged if peer is not one], rules)]
        if fault is not None
    ]
    found.sort(key=lambda item: (-item[0], item[1].id))
    return [outlier for _, outlier in found[:allowed]]


def _worst(one: Standing, peers: Sequence[Standing], rules: HealthRules) -> tuple[float, Fault | None]:
    """How many times over a limit it is, and which; 0 and None within the limits."""
    if len(peers) < _LEAST_PEERS:
        return 0.0, None
    usual = sum(peer.failures for peer in peers) / sum(peer.attempts for peer in peers)
    if one.failure_rate > usual + rules.outlier_failure_rate:
        return 1e6 * one.failure_rate, "failures"  # wrong is worse than slow
    times = [peer.first_token_seconds for peer in peers if peer.first_token_seconds is not None]
    if one.first_token_seconds is None or len(times) < _LEAST_PEERS:
        return 0.0, None
    typical = statistics.median(times)
    limit = max(typical * rules.outlier_slowness, typical + rules.outlier_seconds)
    return (one.first_token_seconds / limit, "slow") if one.first_token_seconds > limit else (0.0, None)
