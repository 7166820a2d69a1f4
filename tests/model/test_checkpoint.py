"""Checkpoint directories: old and new tensor names, shards, and errors that name what is wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import load_checkpoint, save_checkpoint
from model.checkpoint.names import canonical_name
from model.errors import CheckpointError
from model.tiny import make_tiny_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_tiny_checkpoint(tmp_path / "tiny")


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_checkpoint(path, dtype=torch.float32).model.state_dict() for path in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def edit_config(checkpoint: Path, **changes: object) -> None:
    file = checkpoint / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "language_model.model.layers.0.mlp.up_proj.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("model.vision_tower.vision_model.post_layernorm.bias", "vision_tower.vision_model.post_layernorm.bias"),
        ("model.vision_tower.embeddings.class_embedding", "vision_tower.vision_model.embeddings.class_embedding"),
        ("vision_tower.embeddings.class_embedding", "vision_tower.vision_model.embeddings.class_embedding"),
        ("model.multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias"),
        ("model.image_newline", "image_newline"),
        ("language_model.model.norm.weight", "language_model.model.norm.weight"),
        ("language_model.model.layers.0.self_attn.rotary_emb.inv_freq", None),
        ("vision_tower.vision_model.embeddings.position_ids", None),
    ],
)
def test_names_of_every_transformers_version_become_one(written: str, name: str | None) -> None:
    assert canonical_name(written) == name


def test_what_transformers_saves_loads_as_what_it_loaded(checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).save_pretrained(tmp_path / "saved")
    for file in checkpoint.iterdir():
        if not (tmp_path / "saved" / file.name).exists() and file.suffix != ".safetensors":
            (tmp_path / "saved" / file.name).write_bytes(file.read_bytes())
    assert same_weights(checkpoint, tmp_path / "saved")


def test_sharded_weights_load_as_whole_ones(checkpoint: Path, tmp_path: Path) -> None:
    sharded = make_tiny_checkpoint(tmp_path / "sharded")
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, sharded / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same_weights(checkpoint, sharded)


def test_a_saved_checkpoint_loads_again_and_keeps_what_the_model_does_not_hold(
    checkpoint: Path, tmp_path: Path
) -> None:
    loaded = load_checkpoint(checkpoint, dtype=torch.float32)
    saved = save_checkpoint(loaded.model.state_dict(), checkpoint, tmp_path / "saved", dtype=torch.float32)
    assert same_weights(checkpoint, saved)
    assert load_file(saved / "model.safetensors").keys() == load_file(checkpoint / "model.safetensors").keys()


def test_saving_never_overwrites_and_leaves_nothing_behind_when_it_fails(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="already exists"):
        save_checkpoint({}, checkpoint, checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError):
        save_checkpoint({}, checkpoint, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_missing_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint directory"):
        load_checkpoint(tmp_path / "nowhere")


def test_a_directory_without_config_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_checkpoint(tmp_path)


def test_pickled_weights_are_not_loaded(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights are not loaded"):
        load_checkpoint(checkpoint)


def test_a_truncated_file_is_named(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors file"):
        load_checkpoint(checkpoint)


def test_a_missing_tensor_is_named(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["image_newline"]
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 tensors are missing, first image_newline"):
        load_checkpoint(checkpoint)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["image_newline"] = torch.zeros(3)
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"image_newline has shape \[3\].*needs \[64\]"):
        load_checkpoint(checkpoint)


def test_an_index_that_points_outside_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_vl"}, "expected llava or llava_next"),
        ({"vision_feature_layer": -9}, "does not exist"),
        ({"vision_feature_select_strategy": "half"}, "expected default or full"),
        ({"image_token_index": 5000}, "outside the vocabulary"),
        ({"image_grid_pinpoints": [[1]]}, "image_grid_pinpoints"),
        ({"vision_config": {"model_type": "vit"}}, "clip_vision_model or siglip_vision_model"),
        ({"text_config": {"model_type": "gpt2"}}, "llama, mistral or qwen2"),
        ({"text_config": {"model_type": "llama", "hidden_size": -1}}, "hidden_size: expected a positive whole number"),
        ({"text_config": {"model_type": "llama", "hidden_size": 10**12}}, "hidden_size: expected a positive"),
        ({"text_config": None}, "no text_config"),
    ],
)
def test_a_config_that_cannot_be_served_says_which_field(
    checkpoint: Path, change: dict[str, object], message: str
) -> None:
    edit_config(checkpoint, **change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(checkpoint)


def test_a_broken_config_is_named(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read as JSON"):
        load_checkpoint(checkpoint)
