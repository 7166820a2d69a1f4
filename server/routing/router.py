"""From a model's name to a worker: who serves it, who is fit, and the policy's choice among those."""

from __future__ import annotations

from collections.abc import Collection

from server.metrics import Metrics
from server.protocol.errors import unavailable
from server.registry.table import Worker, WorkerTable
from server.routing.base import Choice, Policy, Work
from server.routing.sessions import stay


class Router:
    def __init__(self, table: WorkerTable, policy: Policy, metrics: Metrics) -> None:
        self._table = table
        self._policy = policy
        self._metrics = metrics

    def choose(self, model: str, work: Work, tried: Collection[str] = (), version: str | None = None) -> Worker:
        """A worker not in `tried`, of that version where one is named. Raises ApiError 503 when there is none.

        Enter `Worker.assigned` before anything else is chosen. One whose breaker is half open gets the next first
        attempt as its probe. When every breaker is open, all of them are tried all the same, since the worst they can
        do is fail again.
        """
        serving = self._table.serving(model, version)
        fit = [worker for worker in serving if worker.id not in tried and worker.takes_requests]
        if not fit:
            named = f"the model {model!r}" if version is None else f"version {version!r} of the model {model!r}"
            raise unavailable(f"No worker can answer for {named} right now; try again shortly.")
        choice = self._choose(fit, work, first=not tried)
        self._metrics.routing_decisions.labels(choice.reason).inc()
        return choice.worker

    def _choose(self, fit: list[Worker], work: Work, *, first: bool) -> Choice[Worker]:
        admitted = [worker for worker in fit if worker.health.admits]
        if len(admitted) < len(fit):
            # A request that failed before is not risked on a worker that may not have recovered.
            probed = next((worker for worker in fit if worker.health.wants_probe), None) if first else None
            if probed is not None:
                return Choice(probed, "probe")
            if not admitted:
                return Choice(self._policy.choose(fit, work).worker, "last_resort")
        if len(admitted) == 1:
            return Choice(admitted[0], "only")
        return stay(admitted, work) if work.session else self._policy.choose(admitted, work)
