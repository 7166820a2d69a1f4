"""This controller's own view of the workers: what they told, and what it has under way with each.

Plain memory, changed by `registry.membership` alone as far as members go; no Redis, no HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from server.health.rules import HealthRules
from server.health.worker import WorkerHealth
from server.metrics import Metrics
from server.protocol.registration import ModelCard, Registration, WorkerLoad
from server.routing.base import Work

_REMEMBERED_MODELS = 1000
_REMEMBERED_SECONDS = 600.0


class WorkerRecord(msgspec.Struct, frozen=True):
    """What is kept of a worker in shared state."""

    registration: Registration
    load: WorkerLoad
    healthy: bool
    heard_at: float  # unix seconds, by the clock of the controller that heard it

    @property
    def id(self) -> str:
        return self.registration.worker_id


class Worker:
    """A member, with this controller's account of it."""

    def __init__(self, record: WorkerRecord, rules: HealthRules) -> None:
        self.record = record
        self.health = WorkerHealth(rules)
        self._rules = rules
        self.in_flight = 0
        self.lost = False  # its lease ran out
        self.gone = False  # no member any more, for whichever reason
        self.heard_here_at = float("-inf")  # monotonic: its last heartbeat that came to this controller
        self._own_tokens = 0
        self._foreign_tokens = record.load.outstanding_tokens
        self._awaited: set[asyncio.Timeout] = set()

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def url(self) -> str:
        return self.record.registration.url

    @property
    def card(self) -> ModelCard:
        return self.record.registration.model

    @property
    def healthy(self) -> bool:
        return self.record.healthy and not self.lost

    @property
    def outstanding_tokens(self) -> int:
        """Own work by estimate, plus what the worker reported beyond it (other controllers' work)."""
        return self._own_tokens + self._foreign_tokens

    def update(self, record: WorkerRecord) -> None:
        if record.heard_at != self.record.heard_at:
            self._foreign_tokens = max(0, record.load.outstanding_tokens - self._own_tokens)
        if record.registration.started_at != self.record.registration.started_at:
            self.health = WorkerHealth(self._rules)  # a new process under the old name
        self.record = record

    @contextmanager
    def assigned(self, work: Work) -> Iterator[None]:
        """Counts `work` as under way here, for one attempt, of which `health.record` is to be told."""
        self.in_flight += 1
        self._own_tokens += work.tokens
        try:
            with self.health.attempt():
                yield
        finally:
            self.in_flight -= 1
            self._own_tokens -= work.tokens

    @contextmanager
    def awaited(self, timeout: asyncio.Timeout) -> Iterator[None]:
        """While inside, `timeout` runs out at once if the worker's lease does: nobody waits for the dead."""
        self._awaited.add(timeout)
        try:
            yield
        finally:
            self._awaited.discard(timeout)

    def give_up(self) -> None:
        """Its lease ran out."""
        self.lost = self.gone = True
        for timeout in self._awaited:
            timeout.reschedule(asyncio.get_running_loop().time())


class WorkerTable:
    """Workers by id and by model."""

    def __init__(self, metrics: Metrics, rules: HealthRules) -> None:
        self._metrics = metrics
        self._rules = rules
        self._workers: dict[str, Worker] = {}
        self._by_model: dict[str, list[Worker]] = {}
        self._seen: dict[str, float] = {}  # model -> when it last had a worker, monotonic

    def __iter__(self) -> Iterator[Worker]:
        return iter(sorted(self._workers.values(), key=lambda worker: worker.id))

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, worker_id: str) -> Worker | None:
        return self._workers.get(worker_id)

    def serving(self, model: str) -> list[Worker]:
        return self._by_model.get(model, [])

    def remembers(self, model: str) -> bool:
        """Whether the model had a worker lately: then it is out of reach rather than unknown."""
        return time.monotonic() - self._seen.get(model, float("-inf")) < _REMEMBERED_SECONDS

    @property
    def models(self) -> dict[str, list[Worker]]:
        return self._by_model

    @property
    def healthy(self) -> int:
        return sum(worker.healthy for worker in self._workers.values())

    def put(self, record: WorkerRecord) -> Worker:
        worker = self._workers.get(record.id)
        if worker is None:
            worker = self._workers[record.id] = Worker(record, self._rules)
            self._metrics.registrations.labels("joined").inc()
        else:
            worker.update(record)
        self._index()
        return worker

    def leave(self, worker_id: str) -> Worker | None:
        """The worker went in good order: what it still answers may end in peace."""
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            worker.gone = True
            self._metrics.registrations.labels("left").inc()
            self._metrics.forget_worker(worker_id)
            self._index()
        return worker

    def forget(self, worker_id: str) -> None:
        """The worker's lease ran out."""
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            self._metrics.registrations.labels("forgotten").inc()
            self._metrics.forget_worker(worker_id)
            worker.give_up()
            self._index()

    def _index(self) -> None:
        by_model: dict[str, list[Worker]] = {}
        for worker in self:
            by_model.setdefault(worker.card.name, []).append(worker)
        now = time.monotonic()
        for model in (*self._by_model, *by_model):
            self._seen[model] = now
        if len(self._seen) > _REMEMBERED_MODELS:
            self._seen = dict(sorted(self._seen.items(), key=lambda item: item[1])[-_REMEMBERED_MODELS:])
        self._by_model = by_model
        self._metrics.workers.labels("healthy").set(self.healthy)
        self._metrics.workers.labels("unhealthy").set(len(self) - self.healthy)
