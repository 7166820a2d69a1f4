"""Figures are what one works out by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks.measurement import Histogram, Measurement, Outcome
from benchmarks.statistics import Distribution, Limits, percentile, summarise


def answered(
    began: float, ended: float, first: float, last: float, tokens: int, *, gap: float = 0.0, seen: bool = False
) -> Outcome:
    return Outcome(
        began, ended, first=first, last=last, longest_gap=gap, output_tokens=tokens, input_tokens=10, seen=seen
    )


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 1.0), (0.5, 3.0), (0.95, 9.0), (0.99, 9.8), (1.0, 10.0)],  # place 3.8 lies 0.8 of the way from 5 to 10
)
def test_percentiles_interpolate_between_neighbours(share: float, expected: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 5.0, 10.0], share) == pytest.approx(expected)


def test_a_distribution_of_nothing_is_none_and_of_one_value_is_that_value() -> None:
    assert Distribution.of([]) is None
    one = Distribution.of([0.25])
    assert one == Distribution(1, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25)


def test_a_histogram_keeps_mean_and_ends_exactly_and_percentiles_to_half_a_percent() -> None:
    gaps = Histogram()
    for number in range(1, 1001):
        gaps.add(number / 1000)
    found = Distribution.of_histogram(gaps)
    assert found is not None
    assert (found.count, found.least, found.most) == (1000, 0.001, 1.0)
    assert found.mean == pytest.approx(0.5005)
    assert found.p50 == pytest.approx(0.5, rel=0.006)
    assert found.p99 == pytest.approx(0.99, rel=0.006)
    shares = [share for _, share in gaps.points()]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_tokens_that_arrive_together_are_gaps_of_zero() -> None:
    gaps = Histogram()
    for _ in range(3):
        gaps.add(0.0)
    found = Distribution.of_histogram(gaps)
    assert found is not None
    assert (found.mean, found.p99, found.most) == (0.0, 0.0, 0.0)


def test_rates_are_over_the_time_from_the_first_start_to_the_last_end() -> None:
    measured = Measurement()
    measured.outcomes = [
        answered(1.0, 3.0, 0.5, 1.5, 11),  # 0.1 s a token after the first
        answered(2.0, 5.0, 1.0, 2.0, 21, seen=True),  # 0.05 s
    ]
    broken = Outcome(2.0, 2.5)
    measured.fail(broken, "HTTP 500", "it broke")
    measured.outcomes.append(broken)
    summary = summarise(measured, Limits())
    assert summary.seconds == 4.0
    assert (summary.answered, summary.failed, dict(summary.errors)) == (2, 1, {"HTTP 500": 1})
    assert summary.requests_rate == 0.5
    assert (summary.output_rate, summary.input_rate) == (8.0, 5.0)
    assert summary.ttft is not None and summary.ttft.mean == 0.75
    assert summary.ttft_new is not None and summary.ttft_new.p50 == 0.5
    assert summary.ttft_seen is not None and summary.ttft_seen.p50 == 1.0
    assert summary.tpot is not None and summary.tpot.mean == pytest.approx(0.075)
    assert summary.e2e is not None and summary.e2e.most == 3.0
    assert summary.goodput is None


def test_without_streaming_only_whole_answers_are_timed() -> None:
    measured = Measurement(outcomes=[answered(0.0, 2.0, 2.0, 2.0, 8)])
    summary = summarise(measured, Limits(), streamed=False)
    assert (summary.ttft, summary.itl, summary.tpot) == (None, None, None)
    assert summary.e2e is not None and summary.e2e.p50 == 2.0


def test_one_token_has_no_time_per_output_token() -> None:
    assert answered(0.0, 1.0, 0.5, 0.5, 1).per_token is None


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        ("ttft=600ms", 2),
        ("ttft=400ms", 1),
        ("itl=200ms", 1),
        ("tpot=101ms", 2),
        ("e2e=1.5s", 1),
        ("ttft=1s,itl=10ms", 0),
    ],
)
def test_goodput_counts_answers_within_every_limit(limits: str, good: int) -> None:
    measured = Measurement(outcomes=[answered(0, 1, 0.3, 0.9, 7, gap=0.3), answered(0, 2, 0.5, 0.6, 2, gap=0.1)])
    failed = Outcome(0, 0.1)
    measured.fail(failed, "no connection", "")
    measured.outcomes.append(failed)
    summary = summarise(measured, Limits.parse(limits))
    assert summary.good == good
    assert summary.goodput == good / 2


@pytest.mark.parametrize("text", ["ttft", "ttft=5", "ttft=-1s", "speed=5ms", "ttft=5ms;itl=5ms", "ttft=fast"])
def test_a_limit_that_is_none_is_refused_with_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"limit .*expected ttft, itl, tpot or e2e"):
        Limits.parse(text)


def test_kinds_of_errors_are_bounded_and_none_is_lost() -> None:
    measured = Measurement()
    for number in range(500):
        measured.fail(Outcome(0, 1), f"HTTP 400 made_up_{number}", "")
    assert sum(measured.errors.values()) == 500
    assert len(measured.errors) <= 65
    assert len(measured.samples) <= 65


def test_the_least_and_the_most_of_a_histogram_bound_its_percentiles() -> None:
    gaps = Histogram()
    gaps.add(0.1)
    assert math.isclose(gaps.percentile(0.5), 0.1)
