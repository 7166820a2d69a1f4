"""What one process of a controller knows for its operators, in a form that can be joined with that of the others.

No prompt text, no key. All processes of a controller are on one machine, whose monotonic clock their seconds share.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from server.health.breaker import BreakerState
from server.latency import percentiles
from server.registry.states import WorkerState
from server.registry.table import WorkerTable
from server.registry.worker import Worker
from server.stats import RECENT, SLOWEST, WINDOW, Stats, Tally

_LEAST_RECENT = 25

# What is shown where processes differ: what an operator must not miss first.
_MOST_TELLING: tuple[WorkerState, ...] = (
    "lost",
    "unhealthy",
    "draining",
    "drained",
    "open",
    "half_open",
    "joining",
    "slow_start",
    "healthy",
)


class WorkerView(msgspec.Struct):
    """One process's own experience of a worker."""

    state: WorkerState
    breaker: BreakerState
    breaker_reason: str
    weight: float
    in_flight: int
    outstanding_tokens: int
    queue_seconds: float
    recent_attempts: int
    recent_failures: int
    drained: bool

    @classmethod
    def of(cls, worker: Worker) -> WorkerView:
        window = worker.health.window
        return cls(
            worker.state,
            worker.health.breaker,
            worker.health.reason,
            worker.weight,
            worker.in_flight,
            worker.outstanding_tokens,
            worker.queue_seconds,
            window.attempts,
            window.failures,
            worker.drained,
        )


class Snapshot(msgspec.Struct):
    place: int
    in_flight: int
    requests_total: int
    tokens_total: int
    history: dict[str, list[int]]  # by second, the oldest first; the last is the one before `second`
    second: int  # of the monotonic clock
    tally: Tally
    recent: list[dict[str, Any]]
    slowest: list[dict[str, Any]]
    workers: dict[str, WorkerView]


def take_snapshot(
    stats: Stats, table: WorkerTable, *, place: int, processes: int, in_flight: int, window: int
) -> Snapshot:
    """Of many processes none tells of all its requests: twice its share of what is listed."""
    most = RECENT if processes == 1 else max(_LEAST_RECENT, 2 * RECENT // processes)
    return Snapshot(
        place=place,
        in_flight=in_flight,
        requests_total=stats.total_requests,
        tokens_total=stats.total_tokens,
        history={
            "requests": stats.requests.history(),
            "tokens": stats.tokens.history(),
            "errors": stats.errors.history(),
        },
        second=int(time.monotonic()),
        tally=stats.tally(window),
        recent=[record.public() for record in list(stats.recent)[-most:]],
        slowest=[record.public() for record in stats.slowest(window)],
        workers={worker.id: WorkerView.of(worker) for worker in table},
    )


def joined(snapshots: Sequence[Snapshot], window: int) -> dict[str, Any]:
    """The figures of /admin/stats that come from requests."""
    tally = Tally()
    for one in snapshots:
        tally.merge(one.tally)
    history = {name: _add_seconds(snapshots, name) for name in ("requests", "tokens", "errors")}
    recent = sorted((record for one in snapshots for record in one.recent), key=_ended_at, reverse=True)
    slowest = sorted((record for one in snapshots for record in one.slowest), key=lambda record: -record["seconds"])
    errors = sorted(tally.errors.items(), key=lambda item: -item[1].last)
    return {
        "in_flight": sum(one.in_flight for one in snapshots),
        "rate_seconds": WINDOW,
        "requests_per_second": sum(history["requests"]) / WINDOW,
        "tokens_per_second": sum(history["tokens"]) / WINDOW,
        "errors_per_second": sum(history["errors"]) / WINDOW,
        "requests_total": sum(one.requests_total for one in snapshots),
        "tokens_total": sum(one.tokens_total for one in snapshots),
        "history": history,
        "window_seconds": window,
        "ttft_seconds": percentiles(tally.ttft),
        "inter_token_seconds": percentiles(tally.inter_token),
        "latency_seconds": percentiles(tally.latency),
        "counts": {
            "requests": tally.requests,
            "tokens": tally.tokens,
            "failed": tally.failed,
            "refused_429": tally.refused_429,
            "limits_hit": tally.limits_hit,
            "quarantined": tally.quarantined,
            "retries": tally.retries,
            "carried_over": tally.carried_over,
            "broken": tally.broken,
            "client_left": tally.client_left,
        },
        "errors": [
            {
                "status": int(kind.partition(" ")[0]),
                "code": kind.partition(" ")[2],
                "count": error.count,
                "last": error.last,
                "request_id": error.request_id,
            }
            for kind, error in errors
        ],
        "slowest": slowest[:SLOWEST],
        "recent": recent[:RECENT],
    }


def seen_together(views: Sequence[WorkerView]) -> dict[str, Any]:
    """A worker as all processes see it: what they have under way there adds up, the most telling state is shown."""
    worst = min(views, key=lambda view: _MOST_TELLING.index(view.state))
    drained = all(view.drained for view in views)
    return {
        "state": "draining" if worst.state == "drained" and not drained else worst.state,
        "states": Counter(view.state for view in views),
        "breaker": worst.breaker,
        "breaker_reason": worst.breaker_reason,
        "weight": round(sum(view.weight for view in views) / len(views), 3),
        "safe_to_stop": drained,
        "in_flight": sum(view.in_flight for view in views),
        "outstanding_tokens": max(view.outstanding_tokens for view in views),
        "queue_seconds": round(max(view.queue_seconds for view in views), 3),
        "recent_attempts": sum(view.recent_attempts for view in views),
        "recent_failures": sum(view.recent_failures for view in views),
    }


def _add_seconds(snapshots: Sequence[Snapshot], name: str) -> list[int]:
    """Second by second, although the processes were not asked in the same one."""
    newest = max(one.second for one in snapshots)
    total = [0] * WINDOW
    for one in snapshots:
        late = newest - one.second
        for at, count in enumerate(one.history[name]):
            if at - late >= 0:
                total[at - late] += count
    return total


def _ended_at(record: dict[str, Any]) -> float:
    return float(record["started_at"] + record["seconds"])
