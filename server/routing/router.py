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

        Workers set aside are passed over while another is left; when all are, one of them is tried all the same, since
        the worst it can do is fail again.
        """
        fit = [worker for worker in self._table.serving(model) if worker.healthy and worker.id not in tried]
        if not fit:
            raise unavailable(f"No worker can answer for the model {model!r} right now; try again shortly.")
        return self._policy.choose([worker for worker in fit if not worker.set_aside] or fit, work)
