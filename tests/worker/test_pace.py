"""What tokens cost is found from steps that mix them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.pace import Pace, TokenSeconds

costs = st.floats(1e-6, 0.1)


@given(prompt=costs, answer=costs, steps=st.lists(st.tuples(st.integers(0, 512), st.integers(0, 64)), max_size=60))
def test_the_costs_that_the_steps_were_made_with_are_found(
    prompt: float, answer: float, steps: list[tuple[int, int]]
) -> None:
    pace = Pace()
    for tokens, drawn in [*steps, (512, 0), (0, 8), (256, 16)]:
        pace.add(tokens, drawn, prompt * tokens + answer * drawn)
    assert abs(pace.costs.prompt - prompt) <= 1e-3 * max(prompt, answer)
    assert abs(pace.costs.answer - answer) <= 1e-3 * max(prompt, answer) * 32


@given(st.lists(st.tuples(st.integers(0, 512), st.integers(0, 64), st.floats(0, 10)), max_size=60))
def test_costs_are_never_negative_whatever_the_steps_took(steps: list[tuple[int, int, float]]) -> None:
    pace = Pace()
    for tokens, drawn, seconds in steps:
        pace.add(tokens, drawn, seconds)
        assert pace.costs.prompt >= 0 and pace.costs.answer >= 0


def test_a_kind_of_token_that_was_not_seen_has_no_cost() -> None:
    pace = Pace()
    assert pace.costs == TokenSeconds(0.0, 0.0)
    pace.add(0, 0, 1.0)
    assert pace.costs == TokenSeconds(0.0, 0.0)
    pace.add(0, 4, 0.08)
    assert pace.costs == TokenSeconds(0.0, 0.02)


def test_a_worker_that_became_slower_says_so_soon() -> None:
    pace = Pace()
    for _ in range(500):
        pace.add(100, 4, 0.1)
    for _ in range(200):
        pace.add(0, 4, 0.2)
    assert 0.045 < pace.costs.answer < 0.055


def test_a_step_in_which_the_process_stood_still_hardly_counts() -> None:
    pace = Pace()
    for _ in range(100):
        pace.add(100, 4, 0.1)
        pace.add(0, 4, 0.02)
    pace.add(0, 4, 30.0)
    assert 0.005 <= pace.costs.answer < 0.006
    assert pace.costs.prompt < 0.001


def test_a_worker_that_became_many_times_slower_says_so_all_the_same() -> None:
    pace = Pace()
    for _ in range(200):
        pace.add(0, 4, 0.02)
    for _ in range(300):
        pace.add(0, 4, 2.0)
    assert 0.4 < pace.costs.answer <= 0.5
