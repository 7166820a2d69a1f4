"""`tephra bench profile` on a tiny checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.profile import PARTS, Profile, profile_steps, table
from deploy.cli import app
from model.tiny import make_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("profile") / "tiny")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_of_every_step_make_up_its_time(checkpoint: Path, dtype: str) -> None:
    threads = torch.get_num_threads()
    asked = Profile(checkpoint, False, dtype, prompt=40, batches=(1, 3), repeats=2)
    found = profile_steps(asked)
    assert torch.get_num_threads() == threads
    assert [one.name for one in found] == ["encode one tile", "prefill 40", "decode 1 behind 40", "decode 3 behind 40"]
    for one in found:
        assert sum(one.parts.values()) == pytest.approx(one.milliseconds)
        assert one.parts["products"] > 0
        assert (one.parts["head"] > 0) == (one.name != "encode one tile")
    for one in found[1:]:
        assert one.parts["attention"] > 0 and one.parts["between"] > 0 and one.parts["sampling"] > 0
    rows = table(asked, found)
    assert rows.header == ("step", "all", *PARTS) and len(rows.rows) == 4


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--dtype", "int3"], "dtype 'int3'"), (["--batch", "0"], "--batch '0'")]
)
def test_what_cannot_be_done_is_told(checkpoint: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["bench", "profile", "--model", str(checkpoint), *arguments])
    assert result.exit_code == 1
    assert words in result.output
