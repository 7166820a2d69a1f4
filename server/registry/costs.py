"""What a token costs at each worker of one model, from what the workers measured.

Only a worker that is asked measures. One whose last measure was bad (a process that stood still, a neighbour that took
the processor) would look dear, get no requests, and so look dear for ever. So a measure that is not renewed fades: what
it lies above the cheapest peer's halves, and halves again, until the worker is tried like any other. How seldom one is
tried that is slow indeed, follows from how slow it is. Plain numbers; no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.routing.base import TYPICAL_COSTS, TokenCosts

HALF_LIFE = 20.0  # seconds without a measure in which a cost halves, down to the cheapest peer's


@dataclass(frozen=True)
class Measure:
    """What a worker told last; a cost of 0 says that it does not know."""

    costs: TokenCosts
    age: float  # seconds since another was told

    @property
    def known(self) -> bool:
        return self.costs.prompt > 0 and self.costs.answer > 0


def settle(measures: Sequence[Measure]) -> list[TokenCosts]:
    """For each worker what to reckon with; the mean of the others' where it tells nothing."""
    known = [measure for measure in measures if measure.known]
    if not known:
        return [TYPICAL_COSTS for _ in measures]
    cheapest = TokenCosts(min(one.costs.prompt for one in known), min(one.costs.answer for one in known))
    faded = [_fade(measure, cheapest) for measure in known]
    mean = TokenCosts(sum(one.prompt for one in faded) / len(faded), sum(one.answer for one in faded) / len(faded))
    of_known = iter(faded)
    return [next(of_known) if measure.known else mean for measure in measures]


def _fade(measure: Measure, cheapest: TokenCosts) -> TokenCosts:
    left = 0.5 ** (measure.age / HALF_LIFE)
    return TokenCosts(
        max(cheapest.prompt, measure.costs.prompt * left), max(cheapest.answer, measure.costs.answer * left)
    )
