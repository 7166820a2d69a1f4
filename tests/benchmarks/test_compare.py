"""`tephra bench compare` with real servers on a tiny checkpoint: ours and transformers', one after the other."""

from __future__ import annotations

import json
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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    make_checkpoint(folder / "made", "llava-tiny", make_tiny_checkpoint(folder / "words"))
    return folder / "made"


def test_engines_take_turns_on_one_checkpoint_and_leave_nothing_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tmp_path / "results" / "r.json"
    asked = ["--engines", "tephra:one=--max-running 1,transformers,tephra:broken=--no-such-flag"]
    points = ["--concurrency", "1,2", "--images", "repeated,none", "--runs", "2"]
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
    assert len(found["readings"]) == 16
    for reading in found["readings"]:
        assert reading["summary"]["failed"] == 0, reading["summary"]["errors"]
        assert reading["summary"]["output_tokens"] == 4 * reading["summary"]["answered"]
        assert reading["memory"] > 100 * 2**20
    prompts = {(r["point"]["images"], r["summary"]["prompt_tokens_median"]) for r in found["readings"]}
    assert len(prompts) == 4  # other words at each of the points, and the same for both engines
    (failure,) = found["failures"]
    assert failure["engine"] == "tephra:broken"
    assert any("--no-such-flag" in line for line in failure["tail"])
    assert found["versions"]["this environment"]["torch"]
    page = file.with_suffix(".md").read_text()
    assert "tephra:one against transformers" in page
    assert "OMP_NUM_THREADS=1" in page
    assert "Saved as" in result.output
    left = [
        process for process in psutil.process_iter(["cmdline"]) if str(checkpoint) in (process.info["cmdline"] or [])
    ]
    assert left == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engines", "sglang"], "expected KIND"),
        (["--engines", "vllm", "--vllm-python", "/nowhere/python"], "no Python at /nowhere/python"),
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
