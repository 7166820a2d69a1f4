"""From a model's name to a worker: who serves it, who is fit, and the policy's choice among those."""

from __future__ import annotations

from collections.abc import Callable, Collection

from server.protocol.errors import unavailable
from server.registry.table import Worker, WorkerTable
from server.routing.base import Policy, Work
from server.routing.least_outstanding import LeastOutstanding
from server.routing.round_robin import RoundRobin

POLICIES: dict[str, Callable[[], Policy]] = {"least-outstanding": LeastOutstanding, "round-robin": RoundRobin}


class Router:
    def __init__(self, table: WorkerTable, policy: Policy) -> None:
        self._table = table
        self._policy = policy

    def choose(self, model: str, work: Work, tried: Collection[str] = ()) -> Worker:
        """A worker not in `tried`. Raises ApiError 503 when there is none.

        One whose breaker is half open gets the next first attempt as its probe. When every breaker is open, all of them
        are tried all the same, since the worst they can do is fail again.
        """
        fit = [worker for worker in self._table.serving(model) if worker.healthy and worker.id not in tried]
        if not fit:
            raise unavailable(f"No worker can answer for the model {model!r} right now; try again shortly.")
        if not tried:
            probed = next((worker for worker in fit if worker.health.wants_probe), None)
            if probed is not None:
                return probed
        return self._policy.choose([worker for worker in fit if worker.health.admits] or fit, work)
