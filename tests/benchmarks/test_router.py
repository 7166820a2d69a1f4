"""`tephra bench router`: our controller and the worker that answers at once, really started and asked."""

from __future__ import annotations

import json

from rich.console import Console

from benchmarks.router import RouterBench, router_bench


def test_every_kind_of_request_is_measured_directly_and_through_our_controller(tmp_path):
    with (tmp_path / "said").open("w") as said:
        asked = RouterBench(processes=(1,), peers=tmp_path, runs=1, seconds=0.1)
        assert router_bench(asked, Console(file=said, width=200), tmp_path / "found.json") == 0
    samples = json.loads((tmp_path / "found.json").read_text())["samples"]
    assert len(samples) == 3
    for by_target in samples.values():
        assert set(by_target) == {"direct", "tephra x1"}
        assert all(sample["requests"] > 0 for taken in by_target.values() for sample in taken)
    text = (tmp_path / "said").read_text()
    assert "vllm-router is left out: it is not installed" in text
    assert "requests/s to direct" in text
