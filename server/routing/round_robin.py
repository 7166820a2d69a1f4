"""Round robin: each worker in turn, whatever it is doing. For workers of equal speed, and for comparison.

Smooth and weighted: each turn everyone gains its weight, the richest is chosen and pays what all gained. Equal weights
give the plain round; a worker of half the weight gets every second of its turns.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.routing.base import Choice, Chosen, Work

_REMEMBERED = 4096  # workers


class RoundRobin:
    def __init__(self) -> None:
        self._gained: dict[str, float] = {}

    def choose(self, candidates: Sequence[Chosen], work: Work) -> Choice[Chosen]:
        if len(self._gained) > _REMEMBERED:
            self._gained = {one.id: self._gained.get(one.id, 0.0) for one in candidates}
        for one in candidates:
            self._gained[one.id] = self._gained.get(one.id, 0.0) + one.weight
        chosen = min(candidates, key=lambda one: (-self._gained[one.id], one.id))
        self._gained[chosen.id] -= sum(one.weight for one in candidates)
        return Choice(chosen, "turn")
