"""`tephra bench compare` with real servers on a tiny checkpoint: ours and transformers', one after the other."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from benchmarks.checkpoint import make_checkpoint
from deploy.cli import app
from model.tiny import make_tiny_checkpoint

pytestmark = pytest.mark.timeout(900)
SMALL = ("--max-tokens", "4", "--requests", "2", "--waves", "1", "--warmup", "1", "--size", "60x40")
ANYWHERE = ("--allow-busy", "--idle-timeout", "0")


def serving(checkpoint: Path) -> list[psutil.Process]:
    """The processes that have the checkpoint on their command line."""
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if str(checkpoint) in (process.info["cmdline"] or [])]


@contextmanager
def long_comparison(checkpoint: Path, file: Path) -> Iterator[subprocess.Popen[str]]:
    """One that goes on until something happens to it; yielded once a point is measured."""
    asked = [
        "--engines",
        "tephra",
        "--concurrency",
        "1",
        "--images",
        "none,distinct",
        "--runs",
        "2",
        "--json",
        str(file),
    ]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "deploy.cli", "bench", "compare", "--model", str(checkpoint)),
            *(*asked, *ANYWHERE, "--requests", "16", "--max-tokens", "48"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Who starts the tests in the background may have told all of them to ignore Ctrl-C.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        while "run 1, tephra, none" not in (line := process.stdout.readline()):
            assert line, "it ended before a point was measured"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    make_checkpoint(folder / "made", "llava-tiny", make_tiny_checkpoint(folder / "words"))
    return folder / "made"


def test_engines_take_turns_on_one_checkpoint_and_leave_nothing_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("benchmarks.compare.busy_share", lambda seconds: 0.0)  # without looking for so long
    file = tmp_path / "results" / "r.json"
    asked = ["--engines", "tephra:one=--max-running 1,transformers,tephra:broken=--no-such-flag"]
    points = ["--concurrency", "1,2", "--images", "repeated,none", "--runs", "2", "--limit", "transformers=1:1"]
    result = CliRunner().invoke(
        app,
        ["bench", "compare", "--model", str(checkpoint), *asked, *points, *SMALL, *ANYWHERE, "--json", str(file)],
    )
    assert result.exit_code == 1, result.output  # one of them cannot start
    found = json.loads(file.read_text())
    order = [(reading["run"], reading["engine"]) for reading in found["readings"]]
    assert list(dict.fromkeys(order)) == [
        (0, "tephra:one"),
        (0, "transformers"),
        (1, "tephra:one"),
        (1, "transformers"),
    ]
    assert len(found["readings"]) == 12  # the slow one has half of the points
    answered = {(r["engine"], r["point"]["concurrency"]): r["summary"]["answered"] for r in found["readings"]}
    assert answered == {("tephra:one", 1): 2, ("tephra:one", 2): 2, ("transformers", 1): 1}
    for reading in found["readings"]:
        assert reading["summary"]["failed"] == 0, reading["summary"]["errors"]
        assert reading["summary"]["output_tokens"] == 4 * reading["summary"]["answered"]
        assert reading["memory"] > 100 * 2**20
    ours = [reading for reading in found["readings"] if reading["engine"] == "tephra:one"]
    assert len({(str(r["point"]), r["summary"]["prompt_tokens_median"]) for r in ours}) == 4  # the same in every run
    (failure,) = found["failures"]
    assert failure["engine"] == "tephra:broken"
    assert any("--no-such-flag" in line for line in failure["tail"])
    assert found["versions"]["this environment"]["torch"]
    page = file.with_suffix(".md").read_text()
    assert "tephra:one against transformers" in page
    assert "OMP_NUM_THREADS=1" in page
    assert "transformers: 1 by 1" in page and "different lengths" not in page
    assert str(checkpoint.parent) not in page
    assert "Saved as" in result.output
    assert serving(checkpoint) == []


def test_no_turn_begins_that_would_end_too_late(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    asked = ["--engines", "tephra", "--concurrency", "1", "--images", "none", "--runs", "9", "--minutes", "0.02"]
    result = CliRunner().invoke(
        app, ["bench", "compare", "--model", str(checkpoint), *asked, *SMALL, *ANYWHERE, "--json", str(file)]
    )
    assert result.exit_code == 0, result.output
    assert [reading["run"] for reading in json.loads(file.read_text())["readings"]] == [0]
    assert "Stopped for want of time before tephra, run 2" in file.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engines", "sglang"], "expected KIND"),
        (["--engines", "vllm", "--vllm-python", "/nowhere/python"], "no Python at /nowhere/python"),
        (["--limit", "vllm=1"], "no engine is called vllm"),
        (["--concurrency", "0"], "whole numbers from 1 on"),
        (["--images", "some"], "'some' is not a valid"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    arguments: list[str], words: str, checkpoint: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(
        app, ["bench", "compare", "--model", str(checkpoint), "--json", str(tmp_path / "r.json"), *arguments]
    )
    assert result.exit_code == 1
    assert words in result.output
    assert result.output.count("\n") == 1


def test_a_folder_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "compare", "--model", str(tmp_path)])
    assert result.exit_code == 1
    assert "no checkpoint" in result.output


def test_a_busy_machine_is_refused(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.compare.busy_share", lambda seconds: 0.8)
    result = CliRunner().invoke(
        app,
        [
            *("bench", "compare", "--model", str(checkpoint), "--engines", "tephra"),
            *("--idle-timeout", "0", "--json", str(tmp_path / "r.json")),
        ],
    )
    assert result.exit_code == 1
    assert "the machine is not idle: 80%" in result.output


def test_an_interrupt_keeps_what_is_there_and_leaves_nothing_behind(checkpoint: Path, tmp_path: Path) -> None:
    with long_comparison(checkpoint, tmp_path / "r.json") as process:
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=240)
    assert process.returncode == 130, printed
    found = json.loads((tmp_path / "r.json").read_text())
    assert [reading["point"]["images"] for reading in found["readings"]] == ["none"]
    assert "Stopped early" in printed
    assert serving(checkpoint) == []


def test_a_server_that_dies_is_reported_with_its_log_and_tried_again_in_the_next_run(
    checkpoint: Path, tmp_path: Path
) -> None:
    with long_comparison(checkpoint, tmp_path / "r.json") as process:
        (server,) = [one for one in serving(checkpoint) if one.cmdline()[1:3] == ["-m", "worker"]]
        server.kill()
        printed, _ = process.communicate(timeout=400)
    assert process.returncode == 1, printed
    found = json.loads((tmp_path / "r.json").read_text())
    (failure,) = found["failures"]
    assert (failure["run"], failure["message"]) == (0, "the server ended while it was measured")
    assert failure["tail"]
    broken = found["readings"][1]["summary"]
    assert broken["failed"] > 0
    ends = {"no connection", "stream cut short", "closed without an answer", "connection failed: ClientOSError"}
    assert set(broken["errors"]) <= ends
    assert [reading["run"] for reading in found["readings"]] == [0, 0, 1, 1]
    assert "run 1, distinct, 1 at once" in printed
