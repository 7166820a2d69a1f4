"""What tokens are reckoned to cost: measures that nobody renews fade, so that no worker stays avoided for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.registry.costs import HALF_LIFE, Measure, settle
from server.routing.base import TYPICAL_COSTS, TokenCosts

costs = st.builds(TokenCosts, st.floats(1e-6, 1.0), st.floats(1e-6, 1.0))
UNKNOWN = TokenCosts(0.0, 0.0)


def test_a_measure_that_is_not_renewed_fades_until_the_worker_is_tried_like_its_peers() -> None:
    usual, stalled = TokenCosts(0.0001, 0.001), TokenCosts(0.0008, 0.008)

    def after(age: float) -> list[TokenCosts]:
        return settle([Measure(usual, 0.0), Measure(stalled, age)])

    assert after(0.0) == [usual, stalled]
    assert after(HALF_LIFE) == [usual, TokenCosts(0.0004, 0.004)]
    assert after(3 * HALF_LIFE) == [usual, usual]
    assert after(100 * HALF_LIFE) == [usual, usual]


@given(st.lists(st.builds(Measure, costs, st.floats(0, 1e6)), min_size=1, max_size=6))
def test_no_cost_fades_below_the_cheapest_or_rises(measures: list[Measure]) -> None:
    for measure, settled in zip(measures, settle(measures), strict=True):
        assert min(one.costs.prompt for one in measures) <= settled.prompt <= measure.costs.prompt
        assert min(one.costs.answer for one in measures) <= settled.answer <= measure.costs.answer


def test_a_worker_that_measured_nothing_is_taken_to_be_like_its_peers() -> None:
    known = [Measure(TokenCosts(0.001, 0.01), 0.0), Measure(TokenCosts(0.003, 0.03), 0.0)]
    assert settle([*known, Measure(UNKNOWN, 5.0)])[2] == TokenCosts(0.002, 0.02)
    assert settle([Measure(UNKNOWN, 5.0)]) == [TYPICAL_COSTS]


def test_a_lone_worker_keeps_the_costs_that_it_told() -> None:
    told = TokenCosts(0.002, 0.02)
    assert settle([Measure(told, 1e6)]) == [told]
