"""A worker serves a checkpoint that is stored in int8 as it is, without being told."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.cpu.int8_checkpoint import write_int8
from model.tiny import make_tiny_checkpoint
from worker.settings import StartError, WorkerSettings
from worker.start import start_service


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return write_int8(make_tiny_checkpoint(tmp_path / "tiny"), tmp_path / "int8")


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_stored_int8_is_what_is_served(quantization: str, stored: Path) -> None:
    service = start_service(WorkerSettings(model=str(stored), device="cpu", quantization=quantization))
    assert service.card.version.startswith("llava_next-int8-")


def test_a_dtype_that_int8_has_none_of_is_refused(stored: Path) -> None:
    with pytest.raises(StartError, match="int8 goes with bfloat16 activations, not float32"):
        start_service(WorkerSettings(model=str(stored), device="cpu", dtype="float32"))
