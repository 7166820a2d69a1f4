"""`tephra data instruct` killed at any time and taken up again: nothing that was recorded is asked for twice."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROWS = 60
CONCURRENCY = 8
PATIENCE = 60.0  # seconds for what takes a second


def begin(out: Path, items: Path, url: str) -> subprocess.Popen[str]:
    command = (sys.executable, "-m", "deploy.cli", "data", "instruct", "--out", str(out), "--items", str(items))
    options = ("--url", url, "--rows", str(ROWS), "--concurrency", str(CONCURRENCY), "--first-wait", "0.01")
    return subprocess.Popen((*command, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until it holds, or the process has ended."""
    end = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.002)


def recorded(journal: Path) -> set[tuple[str, str]]:
    """Kind and picture of all answers whose lines are whole."""
    if not journal.exists():
        return set()
    lines = journal.read_bytes().split(b"\n")[:-1]
    entries = (json.loads(line) for line in lines)
    return {tuple(entry["key"].split("/")[:2]) for entry in entries if entry["record"] == "answer"}


def asked_about(ask) -> tuple[str, str]:
    number = re.search(r"number (\d+)", ask.context).group(1)
    return ask.kind, f"{int(number):06}.jpg"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_at_random_moments_loses_nothing_and_pays_for_nothing_twice_that_it_had_recorded(
    seed: int, tmp_path: Path, pictures: Callable[[int], Path], endpoint, says, fails
) -> None:
    draw = random.Random(seed)
    items, out = pictures(ROWS), tmp_path / "out"
    endpoint.script = lambda ask: fails(429, "0.01") if draw.random() < 0.1 else says(seconds=draw.uniform(0, 0.03))
    in_flight = 0
    for _ in range(3):
        before, wait = len(endpoint.asks), draw.randint(1, 25)
        kept = recorded(out / "journal.jsonl")
        process = begin(out, items, endpoint.url)
        until(lambda before=before, wait=wait: len(endpoint.asks) >= before + wait, process)
        time.sleep(draw.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        process.stdout.close()
        assert not {asked_about(ask) for ask in endpoint.asks[before:]} & kept
        in_flight += CONCURRENCY
    before, kept = len(endpoint.asks), recorded(out / "journal.jsonl")
    process = begin(out, items, endpoint.url)
    told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, told
    assert not {asked_about(ask) for ask in endpoint.asks[before:]} & kept
    rows = (out / "data.jsonl").read_text("utf-8").splitlines()
    assert len({json.loads(row)["id"] for row in rows}) == ROWS
    assert len(endpoint.answered) == ROWS
    assert sum(endpoint.answered.values()) <= ROWS + in_flight
    assert recorded(out / "journal.jsonl") >= kept


def test_an_interrupted_run_waits_for_what_is_under_way_and_pays_for_nothing_twice(
    tmp_path: Path, pictures: Callable[[int], Path], endpoint, says
) -> None:
    items, out = pictures(ROWS), tmp_path / "out"
    endpoint.script = lambda ask: says(seconds=0.05)
    process = begin(out, items, endpoint.url)
    until(lambda: len(endpoint.asks) >= 12, process)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "Stopped: interrupted" in told
    assert len(recorded(out / "journal.jsonl")) == len(endpoint.asks) < ROWS
    process = begin(out, items, endpoint.url)
    told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, told
    assert set(endpoint.answered.values()) == {1}


def test_two_runs_do_not_write_one_journal(tmp_path: Path, pictures: Callable[[int], Path], endpoint, breaks) -> None:
    items, out = pictures(ROWS), tmp_path / "out"
    endpoint.script = lambda ask: breaks("hang")
    first = begin(out, items, endpoint.url)
    until(lambda: len(endpoint.asks) >= 1, first)
    second = begin(out, items, endpoint.url)
    told, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1
    assert "another run is writing it" in told
    first.kill()
    first.communicate(timeout=PATIENCE)
