"""Another release of transformers as a reference, in an environment of its own (`make test-transformers` makes it)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3]
PYTHON = Path(os.environ.get("TEPHRA_TRANSFORMERS_PYTHON", ROOT / ".venv-transformers" / "bin" / "python"))
PATIENCE = 900.0  # seconds


@dataclass(frozen=True)
class Question:
    """Pictures are PNG files."""

    pictures: tuple[bytes, ...]
    text: str


@dataclass(frozen=True)
class Answers:
    """What the release made of a checkpoint: see `answers.py`."""

    report: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


Ask = Callable[[Path, Mapping[str, Question], int, Path], Answers]


@pytest.fixture(scope="session")
def new_question() -> type[Question]:
    return Question


@pytest.fixture(scope="session")
def ask_release() -> Ask:
    """Asks the release's own interpreter: checkpoint, questions by name, tokens to generate, a folder to work in."""
    return _ask


def _ask(checkpoint: Path, questions: Mapping[str, Question], tokens: int, folder: Path) -> Answers:
    asked = {}
    for name, question in questions.items():
        files = [folder / f"{name}-{number}.png" for number in range(len(question.pictures))]
        for file, picture in zip(files, question.pictures, strict=True):
            file.write_bytes(picture)
        asked[name] = {"pictures": list(map(str, files)), "text": question.text}
    (folder / "questions.json").write_text(json.dumps({"tokens": tokens, "questions": asked}), "utf-8")
    script = Path(__file__).with_name("answers.py")
    done = subprocess.run(
        [str(PYTHON), "-I", str(script), str(checkpoint), str(folder / "questions.json"), str(folder)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return Answers(json.loads((folder / "report.json").read_text("utf-8")), load_file(folder / "tensors.safetensors"))
