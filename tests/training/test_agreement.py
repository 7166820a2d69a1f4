"""The gate before int8: token by token against bfloat16, over rows that the operator brings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from model.tiny import make_tiny_checkpoint
from training.evaluation.int8 import main


@pytest.fixture
def data(tmp_path: Path) -> Path:
    Image.effect_noise((60, 40), 80).convert("RGB").save(tmp_path / "a.png")
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A grey picture of noise, and nothing else to be seen."},
    ]
    rows = [{"id": str(place), "image": "a.png", "conversations": turns} for place in range(3)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), "utf-8")
    return tmp_path / "rows.json"


def test_the_outcome_is_said_and_told_by_the_exit_code(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_tiny_checkpoint(tmp_path / "tiny")
    assert main([str(folder), "--data", str(data), "--samples", "2", "--least", "0.3"]) == 0
    assert "Good to serve in int8" in capsys.readouterr().out
    assert main([str(folder), "--data", str(data), "--least", "1.01"]) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert "3 rows" in out
    assert "Not close enough" in out
    assert "bfloat16's own answers" in out


def test_what_cannot_be_read_is_one_line(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere"), "--data", str(data)]) == 1
    assert capsys.readouterr().err.startswith("tephra: ")
    folder = make_tiny_checkpoint(tmp_path / "tiny")
    assert main([str(folder), "--data", str(tmp_path / "missing.json")]) == 1
    assert "missing.json" in capsys.readouterr().err
