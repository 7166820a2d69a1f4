"""`tephra bench router`: our controller and the worker that answers at once, really started and asked."""

from __future__ import annotations

import json

from rich.console import Console

from benchmarks.router import RouterBench, router_bench


def test_every_kind_of_request_is_measured_directly_and_through_our_controller(tmp_path):
    found, written = tmp_path / "found.json", tmp_path / "found.md"
    with (tmp_path / "said").open("w") as said:
        asked = RouterBench(processes=(1,), peers=tmp_path, runs=1, seconds=0.1, json=found, markdown=written)
        assert router_bench(asked, Console(file=said, width=200)) == 0
    document = json.loads(found.read_text())
    measured = {(one["shape"], one["target"]) for one in document["readings"]}
    shapes = {shape for shape, _ in measured}
    assert len(shapes) == 6
    assert measured == {(shape, target) for shape in shapes for target in ("direct", "tephra x1")}
    assert all(one["sample"]["requests"] > 0 for one in document["readings"])
    assert document["machine"]["cores"] >= 1
    assert document["versions"]["this environment"]["uvicorn"]
    text = (tmp_path / "said").read_text()
    assert "vllm-router is left out: it is not installed" in text
    assert "requests/s to direct" in text
    assert "requests/s to direct" in written.read_text()
    assert str(tmp_path) not in found.read_text() + written.read_text()
