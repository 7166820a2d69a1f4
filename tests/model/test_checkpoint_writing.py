"""Checkpoints are written whole or not at all."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint, save_checkpoint
from model.checkpoint.importing import plan_import
from model.checkpoint.plan import write_checkpoint
from model.errors import CheckpointError
from model.tiny import make_tiny_checkpoint

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)  # processes that start here import torch, which a busy machine does slowly

WRITE_AND_WAIT = """
import signal, sys
from pathlib import Path
from model.checkpoint.importing import plan_import
from model.checkpoint.plan import write_checkpoint

def wait(phase, done, total):
    print("half way", flush=True)
    signal.pause()

write_checkpoint(plan_import(sys.argv[1]), Path(sys.argv[2]), progress=wait)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@contextmanager
def run(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_writer_leaves_nothing_half_and_others_tell_it_from_one_at_work(tiny: Path, tmp_path: Path) -> None:
    with run(WRITE_AND_WAIT, tiny, tmp_path / "target") as process:
        assert process.stdout is not None and process.stdout.readline() == "half way\n"
        assert [path.name[:16] for path in tmp_path.iterdir()] == [".target.partial-"]
        write_checkpoint(plan_import(tiny), tmp_path / "target")  # by another process, which is in nobody's way
        assert len(list(tmp_path.glob(".target.partial-*"))) == 1
        shutil.rmtree(tmp_path / "target")
    assert process.returncode == -signal.SIGKILL
    assert [path.name[:16] for path in tmp_path.iterdir()] == [".target.partial-"]
    write_checkpoint(plan_import(tiny), tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    load_checkpoint(tmp_path / "target")


def test_a_disk_without_room_is_told_before_anything_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(10, 9, 1))
    with pytest.raises(CheckpointError, match=r"the disk has 0\.00 GB free, .* are needed; nothing was written"):
        write_checkpoint(plan_import(tiny), tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_half_way_gives_one_line_and_keeps_nothing(tiny: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    plan = plan_import(tiny)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"target: cannot be written \(File too large\); nothing was kept"):
            write_checkpoint(plan, tmp_path / "target")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_folders_made_for_a_target_that_does_not_come_to_be_go_with_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"image_newline": torch.full((64,), torch.nan)}
    (tmp_path / "kept").mkdir()
    with pytest.raises(CheckpointError, match="holds NaN"):
        save_checkpoint(broken, tiny, tmp_path / "kept" / "new" / "newer" / "target")
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="nothing was written"):
        patch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(10, 9, 1))
        write_checkpoint(plan_import(tiny), tmp_path / "kept" / "new" / "target")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["kept"]


def test_what_exists_is_never_overwritten(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(CheckpointError, match="already exists"):
        write_checkpoint(plan_import(tiny), tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []


def test_progress_counts_every_byte_twice_written_and_checked(tiny: Path, tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}
    plan = plan_import(tiny)
    write_checkpoint(plan, tmp_path / "target", progress=lambda phase, done, total: seen.update({phase: (done, total)}))
    assert seen == dict.fromkeys(("writing", "checking"), (plan.weights_bytes, plan.weights_bytes))


def test_the_manifest_tells_parts_apart(tiny: Path, tmp_path: Path) -> None:
    write_checkpoint(plan_import(tiny), tmp_path / "one")
    weights = load_checkpoint(tiny, dtype=torch.float32).model.state_dict()
    weights["image_newline"] = weights["image_newline"] + 1
    changed = save_checkpoint(weights, tiny, tmp_path / "changed", dtype=torch.float32)
    write_checkpoint(plan_import(changed), tmp_path / "other")
    one, other = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "other"))
    assert {part for part in one["parts"] if one["parts"][part] != other["parts"][part]} == {"connector"}
    assert one["version"] != other["version"]
    assert {name for name in one["tensors"] if one["tensors"][name] != other["tensors"][name]} == {"image_newline"}


def test_saving_refuses_weights_that_are_not_finite(tiny: Path, tmp_path: Path) -> None:
    broken = {"image_newline": torch.full((64,), torch.nan)}
    with pytest.raises(CheckpointError, match="image_newline holds NaN"):
        save_checkpoint(broken, tiny, tmp_path / "target")
    assert list(tmp_path.iterdir()) == []
