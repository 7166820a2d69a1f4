"""`tephra data convert`, `formats` and `recipes` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.data import app

Files = dict[str, dict[str, Path]]


def test_a_format_of_several_files_is_converted_by_role(published: Files, tmp_path: Path) -> None:
    out = tmp_path / "vqav2.jsonl"
    files = [part for role, file in published["vqav2"].items() for part in ("--from", f"{role}={file}")]
    told = CliRunner().invoke(app, ["convert", "vqav2", str(out), *files])
    assert told.exit_code == 0, told.output
    assert "2 rows written, 3 questions with answers" in told.output
    assert len(out.read_text().splitlines()) == 2


def test_a_format_of_one_file_needs_no_role_and_a_dry_run_shows_rows(published: Files, tmp_path: Path) -> None:
    out = tmp_path / "gqa.json"
    told = CliRunner().invoke(
        app, ["convert", "gqa", str(out), "--from", str(published["gqa"]["questions"]), "--dry-run"]
    )
    assert told.exit_code == 0 and "1 rows would be written" in told.output and "Is the sky dark?" in told.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such", "o.json", "--from", "x"], "no-such: expected one of"),
        (["gqa", "o.json", "--from", "gone.json"], "gone.json: cannot be read"),
        (["vqav2", "o.json", "--from", "x", "--from", "y"], "expected ROLE=FILE with a role of questions, annotations"),
        (["gqa", "o.json", "--from", "questions=a", "--from", "questions=b"], "questions is given twice"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_1(arguments: list[str], message: str) -> None:
    told = CliRunner().invoke(app, ["convert", *arguments])
    assert told.exit_code == 1 and message in told.output


def test_rejected_entries_are_told_with_their_file(published: Files, tmp_path: Path) -> None:
    published["dvqa"]["questions"].write_text(json.dumps([{"question": "q"}]))
    out = tmp_path / "d.json"
    told = CliRunner().invoke(
        app, ["convert", "dvqa", str(out), "--from", str(published["dvqa"]["questions"]), "--on-bad", "reject"]
    )
    assert told.exit_code == 0 and "1 entries rejected" in told.output


def test_formats_and_recipes_are_listed() -> None:
    run = CliRunner()
    assert "aokvqa" in run.invoke(app, ["formats"]).output
    assert "llava-1.5-665k: Stage 2" in run.invoke(app, ["recipes"]).output
