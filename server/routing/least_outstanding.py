"""Least outstanding work: the worker that would be done soonest; of equals, the one chosen longest ago.

Work is weighed in seconds, by each worker's own cost of a prompt token and of an answer token (`base.TokenCosts`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from server.routing.base import Choice, Chosen, Work, seconds_to_end

_REMEMBERED = 4096  # workers


class LeastOutstanding:
    def __init__(self) -> None:
        self._chosen: OrderedDict[str, int] = OrderedDict()  # id -> when, oldest first
        self._turn = 0

    def choose(self, candidates: Sequence[Chosen], work: Work) -> Choice[Chosen]:
        best = min(candidates, key=lambda one: (seconds_to_end(one, work), one.in_flight, self._chosen.get(one.id, 0)))
        self._turn += 1
        self._chosen[best.id] = self._turn
        self._chosen.move_to_end(best.id)
        if len(self._chosen) > _REMEMBERED:
            self._chosen.popitem(last=False)
        return Choice(best, "least")
