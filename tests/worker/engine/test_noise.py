import statistics

from worker.engine.noise import uniform

FIRST = 0.6571689067425717
LAST = 0.12613059261806125


def test_the_draw_is_a_function_of_seed_and_position() -> None:
    # Fixed for good: other numbers here would change the answers of every seeded request.
    assert uniform(0, 0) == FIRST
    assert uniform(2**64 - 1, 2**63) == LAST
    assert uniform(7, 3) == uniform(7, 3)


def test_draws_are_spread_evenly_and_differ_by_seed_and_position() -> None:
    draws = [uniform(seed, position) for seed in range(100) for position in range(100)]
    assert len(set(draws)) == len(draws)
    assert all(0 <= draw < 1 for draw in draws)
    assert abs(statistics.fmean(draws) - 0.5) < 0.01
    assert abs(statistics.pvariance(draws) - 1 / 12) < 0.005
    neighbours = statistics.correlation(draws[:-1], draws[1:])
    assert abs(neighbours) < 0.03
