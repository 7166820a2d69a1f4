"""`tephra bench determinism`: float32 answers stay the same, token for token, whatever else a worker does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.sameness import Reading, Told
from deploy.cli import app


@pytest.mark.timeout(600)
def test_in_float32_nothing_changes_an_answer(tmp_path: Path) -> None:
    file = tmp_path / "determinism.json"
    command = ["bench", "determinism", "--model", "tiny", "--precision", "float32", "--json", str(file)]
    finished = CliRunner().invoke(app, [*command, "--requests", "12", "--max-tokens", "40"])
    assert finished.exit_code == 0, finished.output
    readings = json.loads(file.read_text())["readings"]
    assert [(reading["differed"], reading["answers"], reading["failures"]) for reading in readings] == [(0, 12, 0)] * 5
    by_name = {reading["condition"]: reading for reading in readings}
    assert by_name["one by one, prefix cache"]["cached_tokens"] > 0
    assert by_name["crowd, no caches"]["cached_tokens"] == 0
    assert "crowd, small steps" in file.with_suffix(".md").read_text()


def told(text: str, *logprobs: float, finish: str = "length") -> Told:
    return Told(tuple(text.encode()[place : place + 1] for place in range(len(text))), logprobs, finish)


def test_answers_are_told_apart_at_their_first_token_that_differs() -> None:
    one = told("abc", -1.0, -2.0, -3.0)
    assert one.parts_from(told("abc", -1.5, -2.0, -3.0)) is None
    assert one.parts_from(told("axc", -1.0, -2.0, -3.0)) == 1
    assert one.parts_from(told("ab", -1.0, -2.0)) == 2
    assert one.parts_from(told("abc", -1.0, -2.0, -3.0, finish="stop")) == 3
    assert one.drift(told("abx", -1.5, -2.0, -9.0)) == 0.5


def test_a_reading_counts_what_differed_and_what_was_not_answered() -> None:
    one = told("abc", -1.0, -2.0, -3.0)
    found = [one, None, told("axc", -1.0, -2.0, -3.0), told("abx", -1.0, -2.0, -3.0)]
    reading = Reading.of(
        "int8", "crowd", [one] * 4, found, others=1, preemptions=0, cached_tokens=0, greedy=[True, True, True, False]
    )
    assert (reading.answers, reading.failures, reading.differed, reading.exact, reading.tokens) == (3, 1, 2, 1, 9)
    assert (reading.greedy, reading.greedy_differed) == (2, 1)
    assert reading.median_place == 1.5
