"""The `tephra` command offers what exists, and each of its commands explains itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from deploy.cli import app

pytestmark = pytest.mark.timeout(600)
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
BELOW = {"checkpoint": ["import"], "data": ["demo"], "eval": ["demo"]}


@pytest.mark.parametrize("command", [[name, *BELOW.get(name, [])] for name in COMMANDS], ids=" ".join)
def test_every_command_explains_itself(command: list[str]) -> None:
    asked = [sys.executable, "-m", "deploy.cli", *command, "--help"]
    finished = subprocess.run(asked, capture_output=True, text=True, timeout=240, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "usage" in finished.stdout.lower()


def test_help_lists_the_commands_with_a_line_each() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert re.search(rf"{command} +\w", result.output), command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["controller", "--port", "many"], "--port"),
        (["controller", "--routing", "by-mood"], "--routing"),
        (["worker", "--model", "m", "--dtype", "int3"], "--dtype"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_in_one_line(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.output.startswith("tephra: ")
    assert words in result.output
    assert result.output.count("\n") == 1


def test_measuring_without_psutil_says_how_to_get_it() -> None:
    asked = [["serve", "--url", "http://localhost"], ["compare", "--model", "x"], ["router"], ["soak"], ["determinism"]]
    program = (
        "import json, sys; sys.modules['psutil'] = None\n"
        "from typer.testing import CliRunner\n"
        "from deploy.cli import app\n"
        "results = [CliRunner().invoke(app, ['bench', *command]) for command in json.loads(sys.argv[1])]\n"
        "print(json.dumps([[result.exit_code, result.output] for result in results]))"
    )
    command = [sys.executable, "-c", program, json.dumps(asked)]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout)
    for (name, *_), (code, output) in zip(asked, told, strict=True):
        assert code == 1, (name, output)
        assert output.startswith("tephra: psutil is not installed"), (name, output)


def test_a_worker_without_a_checkpoint_says_so_in_one_line(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "worker", "--port", "0", "--model", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 1
    assert str(tmp_path / "nowhere") in finished.stderr.splitlines()[-1]
    assert "Traceback" not in finished.stderr
