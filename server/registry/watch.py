"""Follows the states of workers: changes are logged and counted, outliers are ejected, and Prometheus sees it all."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from server.health.outliers import Standing, find_outliers
from server.logs import log
from server.metrics import Metrics
from server.registry.states import STATES, WorkerState
from server.registry.table import WorkerTable
from server.registry.worker import Worker

_WORRYING: frozenset[WorkerState] = frozenset({"open", "unhealthy", "lost"})


class StateWatch:
    def __init__(self, table: WorkerTable, metrics: Metrics) -> None:
        self._table = table
        self._metrics = metrics
        self._states: dict[str, WorkerState] = {}
        metrics.add_live(_WorkerStates(table))

    def look(self) -> None:
        """Ejects outliers, and tells what has changed since the last look. To be called about once a second."""
        for workers in self._table.models.values():
            self._eject(workers)
        states = {worker.id: worker.state for worker in self._table}
        lost = {worker.id for worker, _ in self._table.lately_lost()}
        for worker_id, before in self._states.items():
            if worker_id not in states and worker_id in lost:
                self._tell(worker_id, before, "lost")
        for worker_id, state in states.items():
            before_it = self._states.get(worker_id)
            if state != before_it:
                self._tell(worker_id, before_it, state)
        self._states = states

    def _tell(self, worker_id: str, before: WorkerState | None, state: WorkerState) -> None:
        self._metrics.worker_transitions.labels(state).inc()
        worker = self._table.get(worker_id)
        level = logging.WARNING if state in _WORRYING else logging.INFO
        reason = worker.health.reason if worker is not None else ""
        log(level, "worker changed state", worker=worker_id, before=before or "", state=state, reason=reason)

    def _eject(self, workers: list[Worker]) -> None:
        by_id = {worker.id: worker for worker in workers}
        rules = self._table.rules
        for outlier in find_outliers([_standing(worker, rules.least_attempts) for worker in workers], rules):
            self._metrics.worker_ejections.labels(outlier.fault).inc()
            log(logging.WARNING, "worker ejected as an outlier", worker=outlier.id, fault=outlier.fault)
            by_id[outlier.id].health.eject(outlier.fault)


def _standing(worker: Worker, least_times: int) -> Standing:
    window = worker.health.window
    times = window.first_token_seconds
    return Standing(
        worker.id,
        worker.takes_requests and worker.health.admits,
        window.attempts,
        window.failures,
        window.median_first_token if len(times) >= least_times else None,
    )


class _WorkerStates(Collector):
    """The state of each worker when Prometheus asks, since time alone changes some."""

    def __init__(self, table: WorkerTable) -> None:
        self._table = table

    def collect(self) -> Iterable[Metric]:
        states = GaugeMetricFamily(
            "tephra:worker_state", "1 for the state that a worker is in, 0 for the others.", labels=("worker", "state")
        )
        weights = GaugeMetricFamily(
            "tephra:worker_weight", "Share of a full worker's requests, 0 to 1: slow start.", labels=("worker",)
        )
        queues = GaugeMetricFamily(
            "tephra:worker_queue_seconds", "Work estimated to lie before a worker.", labels=("worker",)
        )
        seen = {worker.id: (worker, worker.state) for worker, _ in self._table.lately_lost()}
        seen |= {worker.id: (worker, worker.state) for worker in self._table}
        for worker_id, (worker, state) in seen.items():
            for name in STATES:
                states.add_metric((worker_id, name), float(name == state))
            if state != "lost":
                weights.add_metric((worker_id,), worker.weight)
                queues.add_metric((worker_id,), worker.queue_seconds)
        return [states, weights, queues]
