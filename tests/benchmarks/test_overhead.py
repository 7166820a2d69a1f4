"""The measurement of the client's own cost runs, and finds every token where it was sent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_clients_own_cost_is_told_for_each_number_of_requests_at_once() -> None:
    asked = ["--concurrency", "1,3", "--tokens", "4", "--pace", "0.001", "--requests", "3"]
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.overhead", *asked],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    rows = [line.strip("| ").split(" | ") for line in finished.stdout.splitlines()[2:]]
    assert [(row[0], row[1]) for row in rows] == [("none", "1"), ("none", "3"), ("distinct", "1"), ("distinct", "3")]
    for row in rows:
        lag_p50, lag_p99 = float(row[7]), float(row[8])
        assert 0 <= lag_p50 <= lag_p99  # a stamp never lies before its token was sent
