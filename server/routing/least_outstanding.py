"""Least outstanding work: the worker with the fewest tokens before it; of equals, the one chosen longest ago."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from server.routing.base import Chosen, Work

_REMEMBERED = 4096  # workers


class LeastOutstanding:
    def __init__(self) -> None:
        self._chosen: OrderedDict[str, int] = OrderedDict()  # id -> when, oldest first
        self._turn = 0

    def choose(self, candidates: Sequence[Chosen], work: Work) -> Chosen:
        best = min(candidates, key=lambda one: (one.outstanding_tokens, one.in_flight, self._chosen.get(one.id, 0)))
        self._turn += 1
        self._chosen[best.id] = self._turn
        self._chosen.move_to_end(best.id)
        if len(self._chosen) > _REMEMBERED:
            self._chosen.popitem(last=False)
        return best
