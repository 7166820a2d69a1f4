"""`tephra bench soak` and what it holds: real requests on a tiny checkpoint, and findings on made-up samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.soak_cases import Traffic
from benchmarks.soak_client import SoakClient
from benchmarks.soak_watch import Bounds, Sample, growth, judge
from deploy.cli import app

MIB = 2**20
IDLE = {"num_requests_running": 0.0, "kv_cache_usage_perc": 0.0, "feature_cache_bytes": 5.0, "block_checks": 7.0}


@pytest.mark.timeout(600)
def test_a_worker_under_mixed_traffic_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    command = ["bench", "soak", "--model", "tiny", "--minutes", "0.15", "--clients", "20", "--json", str(file)]
    finished = CliRunner().invoke(app, [*command, "--growth", "512"])
    assert finished.exit_code == 0, finished.output
    told = json.loads(file.read_text())
    assert all(finding["holds"] for finding in told["findings"])
    names = {finding["name"] for finding in told["findings"]}
    assert {"requests with no end", "threads", "open files", "steps whose books did not agree"} <= names
    assert sum(counts.get("answered", 0) for counts in told["requests"].values()) > 0
    assert sum(counts.get("refused", 0) for counts in told["requests"].values()) > 0
    assert "What had to hold" in file.with_suffix(".md").read_text()


def sample(seconds: float, resident: int = 100 * MIB, threads: int = 9, **gauges: float) -> Sample:
    return Sample(seconds, resident, threads, 40, 1, {**IDLE, "block_faults": 0.0, **gauges})


@pytest.mark.parametrize(
    ("end", "name"),
    [
        (sample(9, num_requests_running=1.0), "num_requests_running when idle"),
        (sample(9, kv_cache_usage_perc=0.01), "kv_cache_usage_perc when idle"),
        (sample(9, feature_cache_bytes=11.0), "feature_cache_bytes, at most"),
        (sample(9, block_checks=99.0, block_faults=1.0), "steps whose books did not agree"),
        (sample(9, threads=10), "threads"),
    ],
)
def test_what_is_left_behind_is_found_and_nothing_else(end: Sample, name: str) -> None:
    bounds = Bounds(MIB, {"feature_cache_bytes": 10})
    end = replace(end, gauges={**end.gauges, "block_checks": 99.0})
    findings = list(judge(sample(0), [sample(1), sample(2), sample(3)], end, [], bounds))
    assert [one.name for one in findings if not one.holds] == [name]


def test_growth_is_between_the_middles_of_the_first_and_the_last_third() -> None:
    steady = [sample(second, 100 * MIB + second * MIB) for second in range(31)]
    assert growth(steady) == pytest.approx(20 * MIB)
    assert growth(steady[:2]) is None
    grown = list(judge(sample(0), steady, sample(31, block_checks=8.0), [], Bounds(10 * MIB)))
    assert [one.name for one in grown if not one.holds] == ["growth of memory"]


def test_the_same_number_draws_the_same_requests_and_every_kind_comes() -> None:
    one, two = Traffic(3, 100), Traffic(3, 100)
    drawn = [one.next() for _ in range(400)]
    assert drawn == [two.next() for _ in range(400)]
    kinds = {case.kind for case in one.every()}
    assert {case.kind for case in drawn} == kinds
    assert {case.leaves for case in drawn} == {None, "before the answer", "in its middle", "in the upload"}


@pytest.mark.parametrize(
    ("behaviour", "result", "detail"),
    [
        ("ok", "answered", ""),
        ("500", "wrong", "status 500"),
        ("429", "wrong", "429 with Retry-After ''"),
        ("cut", "wrong", ""),
        ("empty", "wrong", "without the usage"),
        ("error event", "wrong", "an error in the stream"),
        ("hang", "wrong", "lost"),
    ],
)
async def test_every_answer_is_judged(stand_in: Callable[..., Any], behaviour: str, result: str, detail: str) -> None:
    traffic = Traffic(0, 50)
    case = next(case for case in iter(traffic.next, None) if case.kind == "text" and case.stream and not case.leaves)
    server = stand_in(behaviour, tokens=3)
    async with SoakClient(server.url, 2.0, steady=True) as client:
        outcome = await client.ask(case)
    assert outcome.result == result
    assert detail in outcome.detail
