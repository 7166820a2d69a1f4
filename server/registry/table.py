"""This controller's table of workers, by id, by model and by version.

Plain memory, changed by `registry.membership` alone as far as members go; no Redis, no HTTP.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

from server.health.rules import HealthRules
from server.metrics import Metrics
from server.registry.costs import settle
from server.registry.records import Member, WorkerRecord
from server.registry.worker import Worker

_REMEMBERED_MODELS = 1000
_REMEMBERED_SECONDS = 600.0
_REMEMBERED_LOST = 100


class WorkerTable:
    def __init__(self, metrics: Metrics, rules: HealthRules, settle_seconds: float) -> None:
        self.rules = rules
        self._metrics = metrics
        self._settle_seconds = settle_seconds
        self._workers: dict[str, Worker] = {}
        self._by_model: dict[str, list[Worker]] = {}
        self._by_version: dict[tuple[str, str], list[Worker]] = {}
        self._seen: dict[tuple[str, str], float] = {}  # model and version -> when it last had a worker, monotonic
        self.lost: deque[tuple[Worker, float]] = deque(maxlen=_REMEMBERED_LOST)  # with when, monotonic; newest last

    def __iter__(self) -> Iterator[Worker]:
        return iter(sorted(self._workers.values(), key=lambda worker: worker.id))

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, worker_id: str) -> Worker | None:
        return self._workers.get(worker_id)

    def serving(self, model: str, version: str | None = None) -> list[Worker]:
        if version is None:
            return self._by_model.get(model, [])
        return self._by_version.get((model, version), [])

    def remembers(self, model: str, version: str | None = None) -> bool:
        """Whether it had a worker lately: then it is out of reach rather than unknown."""
        limit = time.monotonic() - _REMEMBERED_SECONDS
        if version is not None:
            return self._seen.get((model, version), float("-inf")) > limit
        return any(at > limit for (name, _), at in self._seen.items() if name == model)

    @property
    def models(self) -> dict[str, list[Worker]]:
        return self._by_model

    @property
    def healthy(self) -> int:
        """Workers that take requests."""
        return sum(worker.takes_requests for worker in self._workers.values())

    def put(self, member: Member, *, established: bool = False) -> Worker:
        """`established`: it has served before this controller knew of it, and gets a full share at once."""
        record = member.record
        worker = self._workers.get(record.id)
        if worker is None:
            settle = self._settle_seconds
            worker = Worker(record, self.rules, self._metrics, established=established, settle_seconds=settle)
            self._workers[record.id] = worker
        else:
            worker.update(record)
        worker.set_drain(member.drain)
        self._index()
        return worker

    def leave(self, worker_id: str) -> Worker | None:
        """The worker went in good order: what it still answers may end in peace."""
        worker = self._remove(worker_id)
        if worker is not None:
            worker.gone = True
        return worker

    def forget(self, worker_id: str) -> None:
        """The worker's lease ran out."""
        worker = self._remove(worker_id)
        if worker is not None:
            self.lost.append((worker, time.monotonic()))
            worker.give_up()

    def gave_up(self, record: WorkerRecord) -> bool:
        """Whether a worker was forgotten with just this record, which nothing has renewed since."""
        return record.id not in self._workers and any(worker.record == record for worker, _ in self.lost)

    def lately_lost(self) -> list[tuple[Worker, float]]:
        """Workers that were lost and did not come back, with the seconds since; the last first."""
        now = time.monotonic()
        return [
            (worker, now - at)
            for worker, at in reversed(self.lost)
            if now - at < _REMEMBERED_SECONDS and worker.id not in self._workers
        ]

    def _remove(self, worker_id: str) -> Worker | None:
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            self._metrics.forget_worker(worker_id)
            self._index()
        return worker

    def _index(self) -> None:
        by_model: dict[str, list[Worker]] = {}
        by_version: dict[tuple[str, str], list[Worker]] = {}
        for worker in self:
            by_model.setdefault(worker.card.name, []).append(worker)
            by_version.setdefault((worker.card.name, worker.card.version), []).append(worker)
        now = time.monotonic()
        for served in (*self._by_version, *by_version):
            self._seen[served] = now
        if len(self._seen) > _REMEMBERED_MODELS:
            self._seen = dict(sorted(self._seen.items(), key=lambda item: item[1])[-_REMEMBERED_MODELS:])
        self._by_model, self._by_version = by_model, by_version
        for workers in by_model.values():
            _set_costs(workers)
        self._metrics.workers.labels("healthy").set(self.healthy)
        self._metrics.workers.labels("unhealthy").set(len(self) - self.healthy)


def _set_costs(workers: list[Worker]) -> None:
    for worker, costs in zip(workers, settle([worker.measure for worker in workers]), strict=True):
        worker.costs = costs
