"""Power of two choices: of two workers drawn at random, the one that would be done sooner.

Nearly as even as asking everyone, and many controllers with the same stale view do not all run to the same worker
(Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from server.routing.base import Choice, Chosen, Work, seconds_to_end


class PowerOfTwo:
    def __init__(self, random: Random | None = None) -> None:
        self._random = random or Random()

    def choose(self, candidates: Sequence[Chosen], work: Work) -> Choice[Chosen]:
        drawn = self._random.sample(candidates, min(2, len(candidates)))  # in random order: of equals, either
        return Choice(min(drawn, key=lambda one: seconds_to_end(one, work)), "two")
