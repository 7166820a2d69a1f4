"""Where an original checkpoint's vision tower may come from: any directory that holds it, by whatever names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint.importing import ImportOptions, plan_import
from model.checkpoint.original import KNOWN_TOWERS
from model.checkpoint.plan import write_checkpoint
from model.errors import CheckpointError
from model.tiny import make_tiny_checkpoint


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def written(source: Path, target: Path, **options: Any) -> dict[str, torch.Tensor]:
    write_checkpoint(plan_import(source, ImportOptions(**options)), target)
    return load_file(target / "model.safetensors")


def tower_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith("vision_tower.")}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def as_transformers_5(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    old, new = "vision_tower.vision_model.", "model.vision_tower."
    save_file({name.replace(old, new, 1): t for name, t in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize("generation", ["llava-1.5", "llava-next-2024-05"])
@pytest.mark.parametrize("change", [lambda folder: None, as_transformers_5], ids=["4.37", "5.x"])
def test_a_llava_in_hugging_face_layout_gives_its_tower(
    generation: str, change: Callable, tmp_path: Path, originals: Callable
) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation=generation, seed=5)
    source = originals(tiny, tmp_path)
    expected = load_file(tiny / "model.safetensors")
    change(tiny)
    found = written(source.path, tmp_path / "ours", vision_tower=tiny)
    assert same(tower_of(found), tower_of(expected))


def test_layers_that_a_llava_keeps_behind_its_siglip_feature_are_left_out(tmp_path: Path, originals: Callable) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation="llava-next-2024-05", seed=5)
    source = originals(tiny, tmp_path)
    whole = load_file(tiny / "model.safetensors")
    behind = {n.replace(".layers.2.", ".layers.3."): t + 1 for n, t in tower_of(whole).items() if ".layers.2." in n}
    save_file({**whole, **behind}, tiny / "model.safetensors")
    vision = json.loads((tiny / "config.json").read_text())["vision_config"]
    edit(tiny / "config.json", vision_config={**vision, "num_hidden_layers": 4}, vision_feature_layer=-2)
    assert same(tower_of(written(source.path, tmp_path / "ours", vision_tower=tiny)), tower_of(whole))


@pytest.mark.parametrize("generation", ["llava-1.5", "llava-next-2024-05"])
def test_a_llava_in_the_original_layout_gives_its_tower(
    generation: str, tmp_path: Path, originals: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation=generation, seed=5)
    lacking = originals(tiny, tmp_path / "lacking")
    holding = originals(tiny, tmp_path / "holding", form="bin", shards=2, tower_inside=True)
    with pytest.raises(CheckpointError, match="the sizes of its vision tower nobody/tower are not known"):
        plan_import(lacking.path, ImportOptions(vision_tower=holding.path))
    described = json.loads((holding.tower / "config.json").read_text())["vision_config"]
    monkeypatch.setitem(KNOWN_TOWERS, "tower", described)  # so that a tiny one has a name
    found = written(lacking.path, tmp_path / "ours", vision_tower=holding.path)
    assert same(tower_of(found), tower_of(load_file(tiny / "model.safetensors")))
    with pytest.raises(CheckpointError, match="lacking/original: holds no vision tower"):
        plan_import(lacking.path, ImportOptions(vision_tower=lacking.path))


def test_a_tower_of_another_width_is_refused_by_its_width(tmp_path: Path, originals: Callable) -> None:
    source = originals(make_tiny_checkpoint(tmp_path / "tiny", generation="llava-1.5"), tmp_path)
    edit(source.path / "config.json", mm_hidden_size=1024)
    with pytest.raises(CheckpointError, match=r"tower: a vision tower of width 32; mm_hidden_size of .* is 1024"):
        plan_import(source.path, ImportOptions(vision_tower=source.tower))


def test_a_tower_that_is_inside_needs_only_its_description(tmp_path: Path, originals: Callable) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation="llava-1.5", seed=5)
    source = originals(tiny, tmp_path, tower_inside=True)
    with pytest.raises(CheckpointError, match="sizes of the vision tower nobody/tower are not known; --vision-tower"):
        plan_import(source.path)
    for file in source.tower.glob("*.bin"):
        file.unlink()
    found = written(source.path, tmp_path / "ours", vision_tower=source.tower)
    assert same(tower_of(found), tower_of(load_file(tiny / "model.safetensors")))


def test_an_adapter_on_a_whole_llava_takes_the_tower_of_its_base(tmp_path: Path, originals: Callable) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation="llava-next-2024-05", seed=5)
    source = originals(tiny, tmp_path)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "config.json").write_bytes((source.path / "config.json").read_bytes())
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4}))
    module = "base_model.model.model.layers.0.self_attn.o_proj"
    matrices = {f"{module}.lora_A.weight": torch.ones(2, 64), f"{module}.lora_B.weight": torch.ones(64, 2)}
    save_file(matrices, adapter / "adapter_model.safetensors")
    found, before = written(adapter, tmp_path / "ours", base=tiny), load_file(tiny / "model.safetensors")
    changed = "language_model.model.layers.0.self_attn.o_proj.weight"
    assert torch.allclose(found.pop(changed), before.pop(changed) + 4)
    assert same(found, before)
