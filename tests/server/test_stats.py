"""What the dashboard is told of requests: windows, percentiles, errors, the slowest, and sums over processes."""

from __future__ import annotations

import math
import random

import pytest

from server import stats as stats_module
from server.latency import MOST, add_up, bucket_of, percentiles
from server.protocol.registration import WorkerTotals
from server.registry.progress import Progress, WorkerPace
from server.stats import RequestRecord, Stats, Tally


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 10_000.0

        def monotonic(self) -> float:
            return self.now

        time = perf_counter = monotonic

    clock = Clock()
    monkeypatch.setattr(stats_module, "time", clock)
    return clock


def ended(seconds: float, **fields) -> RequestRecord:
    known = {"id": "r", "route": "/v1/chat/completions", "status": 200, "ended": "complete", "stream": True}
    return RequestRecord(**{**known, "seconds": seconds, "first_byte_seconds": seconds / 2, **fields})


def test_a_percentile_is_off_by_less_than_a_bucket_whatever_was_counted():
    draw = random.Random(3)
    for _ in range(20):
        seconds = [draw.lognormvariate(-2, 1.5) for _ in range(draw.randrange(1, 400))]
        histogram: dict[int, int] = {}
        for one in seconds:
            add_up(histogram, {bucket_of(one): 1})
        told = percentiles(histogram)
        assert told["count"] == len(seconds)
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            true = sorted(seconds)[math.ceil(share * len(seconds)) - 1]
            assert true / 1.1 < told[name] < true * 1.1, (name, true, told)


def test_no_duration_falls_beside_the_buckets():
    assert percentiles({}) == {"p50": None, "p90": None, "p99": None, "count": 0}
    for seconds in (0.0, 1e-9, 1.0, 1e9):
        assert 0 <= bucket_of(seconds) < MOST


def test_counts_and_percentiles_are_those_of_the_window_that_was_asked_for(clock):
    stats = Stats()
    stats.add(ended(8.0))
    clock.now += 200
    stats.add(ended(2.0, status=500, ended="error", error="engine_error"))
    stats.add(ended(2.0))
    stats.add_tokens(10)
    stats.add_tokens(4, gap=0.2)
    minute, five = stats.tally(60), stats.tally(300)
    assert (minute.requests, five.requests, minute.failed) == (2, 3, 1)
    assert percentiles(minute.latency)["p99"] == pytest.approx(2.0, rel=0.1)
    assert percentiles(five.latency)["p99"] == pytest.approx(8.0, rel=0.1)
    assert percentiles(minute.inter_token) == {**percentiles({bucket_of(0.05): 4}), "count": 4}
    assert minute.tokens == 14
    assert [record.seconds for record in stats.slowest(300)] == [8.0, 2.0, 2.0]
    clock.now += 906  # a slice beyond
    assert stats.tally(900) == Tally()
    assert stats.slowest(900) == []


def test_what_is_kept_is_bounded_however_many_requests_and_codes_there_are(clock):
    stats = Stats()
    for number in range(20_000):
        clock.now += 0.1
        stats.add(ended(number / 1000, status=400 + number % 2, ended="error", error=f"code-{number}"))
        stats.add_tokens(1, gap=number / 1000)
    tally = stats.tally(900)
    assert tally.requests == pytest.approx(9000, abs=60)
    assert len(tally.errors) < 40
    assert sum(error.count for error in tally.errors.values()) == tally.requests
    assert len(tally.inter_token) <= MOST
    assert len(stats.recent) == stats_module.RECENT
    assert len(stats.slowest(900)) == stats_module.SLOWEST


def test_phases_add_up_to_the_whole_of_a_request():
    streamed = ended(
        10.0,
        prepare_seconds=1.0,
        lost_seconds=0.5,
        first_byte_seconds=4.0,
        queue_seconds=1.5,
        prefill_seconds=0.5,
        send_seconds=2.0,
        worker="w",
    )
    phases = streamed.phases()
    assert phases == pytest.approx(
        {"prepare": 1.0, "lost": 0.5, "queue": 1.5, "prefill": 0.5, "worker": 0.5, "decode": 4.0, "sending": 2.0}
    )
    whole = ended(5.0, stream=False, prepare_seconds=1.0, queue_seconds=9.0, decode_seconds=1.0, worker="w")
    assert sum(whole.phases().values()) == pytest.approx(5.0)
    assert min(whole.phases().values()) >= 0
    assert ended(0.2, status=400, ended="error").phases()["prepare"] == pytest.approx(0.2)


def test_a_workers_pace_comes_from_its_running_totals_and_begins_anew_with_it():
    now = 0.0
    progress = Progress(WorkerTotals(), lambda: now)
    assert progress.pace == WorkerPace()
    for step in range(1, 40):
        now = step * 2.0
        progress.note(WorkerTotals(100 * step, 20 * step, 100 * step, 75 * step, step, step // 2))
    pace = progress.pace
    assert pace.answer_tokens_per_second == pytest.approx(10.0)
    assert pace.prompt_tokens_per_second == pytest.approx(50.0)
    assert pace.prefix_hit_rate == pytest.approx(0.75)
    assert pace.image_hit_rate == pytest.approx(0.5, abs=0.02)
    progress.note(WorkerTotals(answer_tokens=3))  # another process under the same name
    assert progress.pace == WorkerPace()
    progress.note(None)
    assert progress.pace == WorkerPace()
