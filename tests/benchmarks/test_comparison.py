"""Medians, ranges and ratios of a comparison, held against sums done by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks.comparison import FIRST, MEMORY, REQUESTS, Comparison, Failure, Point, Reading
from benchmarks.comparison_report import markdown, tables
from benchmarks.measurement import Measurement, Outcome
from benchmarks.statistics import Limits, summarise

POINT = Point("distinct", 8)
OTHER = Point("repeated", 1)


def reading(run: int, engine: str, seconds: float, first: float, *, point: Point = POINT, **more: Any) -> Reading:
    """Two requests answered in `seconds`."""
    measured = Measurement()
    for seen in (False, True):
        took = first / 4 if seen else first
        measured.outcomes.append(
            Outcome(
                0.0, seconds, first=took, last=seconds, output_tokens=5, input_tokens=more.get("prompt", 9), seen=seen
            )
        )
    if "error" in more:
        broken = Outcome(0.0, 0.1)
        measured.fail(broken, more["error"], "")
        measured.outcomes.append(broken)
    return Reading(
        run, engine, point, summarise(measured, Limits()), more.get("memory", 2**30), more.get("others", 0.0)
    )


def comparison(*readings: Reading, engines: tuple[str, ...] = ("tephra", "tephra:int8", "vllm")) -> Comparison:
    machine: Mapping[str, Any] = {
        "cpu": "A | B",
        "cores": 2,
        "memory": 2**34,
        "system": "Linux",
        "flags": ("avx512_bf16",),
        "gpus": (),
    }
    settings = {"name": "trial", "dtype": "bfloat16"}
    versions = {"this environment": {"torch": "2"}}
    return Comparison(settings, machine, versions, engines, (POINT, OTHER), "2026-01-01", list(readings))


def test_ratios_are_of_the_same_run_and_above_one_where_the_first_is_better() -> None:
    found = comparison(
        reading(0, "tephra", 2.0, 0.4),  # 1 request a second
        reading(0, "vllm", 4.0, 1.0),  # 0.5
        reading(1, "tephra", 8.0, 0.8),
        reading(1, "vllm", 8.0, 0.8),
        reading(2, "tephra", 1.0, 0.1),  # without a counterpart
    )
    ratio = found.ratio("tephra", "vllm", POINT, REQUESTS)
    assert ratio is not None and (ratio.median, ratio.least, ratio.most, ratio.count) == (1.5, 1.0, 2.0, 2)
    first = found.ratio("tephra", "vllm", POINT, FIRST)
    assert first is not None and (first.least, first.most) == (pytest.approx(1.0), pytest.approx(2.5))
    assert found.ratio("tephra", "vllm", OTHER, REQUESTS) is None


def test_each_of_ours_is_held_against_all_others_and_against_our_first() -> None:
    found = comparison(engines=("vllm", "tephra", "tephra:int8", "transformers"))
    assert found.pairs() == [
        ("tephra", "vllm"),
        ("tephra", "transformers"),
        ("tephra:int8", "vllm"),
        ("tephra:int8", "transformers"),
        ("tephra:int8", "tephra"),
    ]


def test_the_median_and_the_range_are_over_runs() -> None:
    found = [reading(run, "tephra", 2.0, 0.1, memory=size * 2**30) for run, size in enumerate((3, 1, 2))]
    spread = MEMORY.spread(found)
    assert spread is not None
    assert spread.text(MEMORY.form) == "2.00 GiB (1.00 GiB - 3.00 GiB)"


def test_the_page_names_machine_versions_settings_and_every_figure() -> None:
    found = comparison(
        reading(0, "tephra", 2.0, 0.4), reading(0, "vllm", 4.0, 1.0), reading(0, "tephra", 2.0, 0.4, point=OTHER)
    )
    page = markdown(found)
    for words in ("trial, 2026-01-01", "avx512_bf16", "torch 2", "dtype: bfloat16", "| tephra | 1.000 | 5.0 |"):
        assert words in page
    titles = [rows.title for rows in tables(found)]
    assert "tephra against vllm: how many times better, median (range) over runs" in titles
    (known,) = [rows for rows in tables(found) if rows.title == "A picture that was sent before"]
    assert known.rows == (("repeated, 1 at once", "tephra", "400 ms", "100 ms", "0.25"),)


def test_what_makes_figures_doubtful_is_told() -> None:
    found = comparison(
        reading(0, "tephra", 2.0, 0.4, prompt=600, others=0.4),
        reading(0, "vllm", 4.0, 1.0, prompt=601, error="HTTP 500"),
    )
    found.failures.append(Failure(1, "vllm", "the server ended while it was measured", ("Killed",)))
    page = markdown(found)
    assert "distinct, 8 at once: prompts are of different lengths in tokens: tephra [600.0], vllm [601.0]." in page
    assert "OTHER PROCESSES took more than 10% of the machine, up to 40%, in 1 of 2 measurements" in page
    assert "vllm, run 1, distinct, 8 at once: 1 x HTTP 500." in page
    assert "vllm, run 2: the server ended while it was measured" in page


def test_an_engine_that_answered_nothing_has_no_figures() -> None:
    silent = Reading(0, "vllm", POINT, summarise(Measurement(), Limits()), 2**30, 0.0)
    found = comparison(reading(0, "tephra", 2.0, 0.4), silent)
    assert found.ratio("tephra", "vllm", POINT, REQUESTS) is None
    assert "| vllm | - | - | - | - | - | - | - |" in markdown(found)
