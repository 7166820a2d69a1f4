"""Round robin: each worker in turn, whatever it is doing. For workers of equal speed, and for comparison."""

from __future__ import annotations

from collections.abc import Sequence

from server.routing.base import Chosen, Work


class RoundRobin:
    def __init__(self) -> None:
        self._last = ""

    def choose(self, candidates: Sequence[Chosen], work: Work) -> Chosen:
        ordered = sorted(candidates, key=lambda one: one.id)
        chosen = next((one for one in ordered if one.id > self._last), ordered[0])
        self._last = chosen.id
        return chosen
