"""A manifest says what its checkpoint was made of; so does a summary, of ours and of the original layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint.importing import ImportOptions, plan_import
from model.checkpoint.original_summary import summarise_original
from model.checkpoint.plan import write_checkpoint
from model.checkpoint.summary import summarise
from model.errors import CheckpointError
from model.tiny import make_tiny_checkpoint


@pytest.fixture
def source(tmp_path: Path, originals: Callable) -> Any:
    made = originals(make_tiny_checkpoint(tmp_path / "tiny", generation="llava-1.5", seed=5), tmp_path / "made")
    for name, path in (("path", "llava-7b-delta-v1"), ("base", "vicuna-7b"), ("tower", "clip-vit")):
        getattr(made, name).rename(tmp_path / path)
    return tmp_path


def adapter(folder: Path) -> Path:
    piece = folder / "llava-v1.5-7b-lora"
    piece.mkdir()
    (piece / "config.json").write_bytes((folder / "llava-7b-delta-v1" / "config.json").read_bytes())
    (piece / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4}))
    module = "base_model.model.model.layers.0.self_attn.o_proj"
    matrices = {f"{module}.lora_A.weight": torch.ones(2, 64), f"{module}.lora_B.weight": torch.ones(64, 2)}
    save_file(matrices, piece / "adapter_model.safetensors")
    connector = {"0.weight": (64, 32), "0.bias": (64,), "2.weight": (64, 64), "2.bias": (64,)}
    beside = {f"base_model.model.model.mm_projector.{name}": torch.ones(shape) for name, shape in connector.items()}
    torch.save(beside, piece / "non_lora_trainables.bin")
    return piece


def imported(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    write_checkpoint(plan_import(source, ImportOptions(**options)), target)
    return json.loads((target / "manifest.json").read_text())


def test_a_merged_adapter_names_its_base_as_parent(source: Path) -> None:
    told = imported(adapter(source), source / "ours", base=source / "vicuna-7b", vision_tower=source / "clip-vit")
    assert told["parent"] == "vicuna-7b"
    assert told["source"] == "original (llava_llama, LoRA merged)"
    assert told["made_from"] == [
        {"role": "source", "name": "llava-v1.5-7b-lora"},
        {"role": "base", "name": "vicuna-7b"},
        {"role": "vision tower", "name": "clip-vit"},
    ]
    summary = summarise(source / "ours")
    assert summary.parent == "vicuna-7b"
    assert summary.made_from == ("source llava-v1.5-7b-lora", "base vicuna-7b", "vision tower clip-vit")


def test_a_delta_names_its_base_and_the_commit_that_it_was(source: Path) -> None:
    snapshots = source / "models--lmsys--vicuna-7b" / "snapshots"
    snapshots.mkdir(parents=True)
    base = (source / "vicuna-7b").rename(snapshots / "0123abc")
    told = imported(
        source / "llava-7b-delta-v1", source / "ours", base=base, delta=True, vision_tower=source / "clip-vit"
    )
    assert told["parent"] == "vicuna-7b@0123abc"
    assert {"role": "base", "name": "vicuna-7b", "revision": "0123abc"} in told["made_from"]
    assert "base vicuna-7b (revision 0123abc)" in summarise(source / "ours").made_from


def test_whole_weights_have_no_parent_and_copies_have_the_version_that_they_are_of(source: Path) -> None:
    first = imported(source / "llava-7b-delta-v1", source / "first", vision_tower=source / "clip-vit")
    assert first["parent"] is None
    copy = imported(source / "first", source / "copy", dtype=torch.bfloat16)
    assert copy["parent"] == first["version"] != copy["version"]
    merged = imported(adapter(source), source / "merged", base=source / "first")
    assert merged["parent"] == first["version"]


def test_a_name_that_speaks_of_a_delta_is_remarked_upon(source: Path) -> None:
    taken = {"vision_tower": source / "clip-vit"}
    plan = plan_import(source / "llava-7b-delta-v1", ImportOptions(**taken))
    assert any("speaks of a delta" in note for note in plan.notes)
    added = plan_import(source / "llava-7b-delta-v1", ImportOptions(base=source / "vicuna-7b", delta=True, **taken))
    assert added.notes == ()


def test_a_manifest_of_nonsense_is_shown_as_far_as_it_makes_sense(source: Path) -> None:
    imported(source / "llava-7b-delta-v1", source / "ours", vision_tower=source / "clip-vit")
    file = source / "ours" / "manifest.json"
    nonsense = {"parent": 7, "made_from": [3, {"name": None}, {"role": "base", "name": "here"}]}
    file.write_text(json.dumps({**json.loads(file.read_text()), **nonsense}))
    assert (summarise(source / "ours").parent, summarise(source / "ours").made_from) == (None, ("base here",))


def test_an_original_without_its_tower_is_summarised(source: Path) -> None:
    summary = summarise_original(source / "llava-7b-delta-v1")
    assert (summary.layout, summary.generation, summary.images) == ("original (llava_llama)", "llava-1.5", "pad")
    assert summary.template == "v1"
    assert {part.name: (part.parameters, part.dtype) for part in summary.parts} == {
        "vision_tower": (0, ""),
        "connector": (6272, "float32"),
        "language_model": (107200, "float32"),
    }
    assert len(summary.missing) == 2
    assert "if it is a delta (--delta --base)" in summary.missing[0]
    assert "nobody/tower (--vision-tower)" in summary.missing[1]
    assert summary.command.endswith("llava-7b-delta-v1 TARGET --delta --base FOLDER --vision-tower FOLDER")


def test_an_adapter_is_summarised(source: Path) -> None:
    piece = adapter(source)
    settings = {"peft_type": "LORA", "lora_alpha": 4, "base_model_name_or_path": "lmsys/vicuna-7b-v1.5"}
    (piece / "adapter_config.json").write_text(json.dumps(settings))
    summary = summarise_original(piece)
    assert "LoRA adapter" in summary.holds
    assert summary.missing[0] == "the model that it adapts, lmsys/vicuna-7b-v1.5 (--base)"
    parts = {part.name: part for part in summary.parts}
    assert (parts["adapter"].described, parts["adapter"].parameters) == ("LoRA, rank 2, of 1 weight", 256)
    assert (parts["connector"].tensors, parts["language_model"].tensors) == (4, 0)
    assert summary.command.endswith("TARGET --base FOLDER --vision-tower FOLDER")


def test_a_projector_is_summarised(source: Path) -> None:
    piece = adapter(source).rename(source / "llava-pretrain")
    (piece / "non_lora_trainables.bin").rename(piece / "mm_projector.bin")
    for file in piece.glob("adapter_*"):
        file.unlink()
    summary = summarise_original(piece)
    assert summary.holds == "a projector alone"
    assert summary.template == "plain"
    assert [part.tensors for part in summary.parts] == [0, 4, 0]


def test_nothing_of_the_weights_is_read_for_a_summary(source: Path) -> None:
    whole = source / "llava-7b-delta-v1" / "model.safetensors"
    data = bytearray(whole.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    data[header:] = b"\xff" * (len(data) - header)  # NaN throughout
    whole.write_bytes(data)
    assert summarise_original(source / "llava-7b-delta-v1").parameters == 113_472


def test_an_original_that_makes_no_sense_is_named_with_its_field(source: Path) -> None:
    config = source / "llava-7b-delta-v1" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "mm_projector_type": "resampler"}))
    with pytest.raises(CheckpointError, match=r"delta-v1/config\.json: mm_projector_type 'resampler'"):
        summarise_original(source / "llava-7b-delta-v1")
