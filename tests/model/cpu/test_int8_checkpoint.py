"""Stored int8 weights compute what weights quantised at load do, to the bit; damaged ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaNextForConditionalGeneration
from typer.testing import CliRunner

from deploy.checkpoint import app
from model.attention import SegmentAttention
from model.checkpoint import load_checkpoint
from model.checkpoint.export import export_for_transformers, export_original
from model.checkpoint.summary import summarise
from model.checkpoint.verify import verify_checkpoint
from model.cpu.int8 import to_int8
from model.cpu.int8_checkpoint import is_stored_in_int8, load_int8_checkpoint, write_int8
from model.errors import CheckpointError
from model.llava import LlavaModel
from model.tiny import make_tiny_checkpoint

QKV = "language_model.model.layers.0.qkv"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return write_int8(make_tiny_checkpoint(tmp_path / "tiny"), tmp_path / "int8")


def outputs(model: LlavaModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and logits."""
    size = model.config.vision.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(40) * 5 % 200
    hidden = model.language_model(model.language_model.embed(ids), torch.arange(40), SegmentAttention([40]))
    return model.encode_tiles(pixels), model.language_model.logits(hidden)


@pytest.mark.parametrize("generation", ["llava-1.5", "llava-next-2024-05"])
@torch.inference_mode()
def test_stored_weights_compute_to_the_bit_what_weights_quantised_at_load_do(generation: str, tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "tiny", generation=generation)
    write_int8(folder, tmp_path / "int8")
    expected = outputs(to_int8(load_checkpoint(folder, dtype=torch.bfloat16).model))
    found = outputs(load_int8_checkpoint(tmp_path / "int8").model)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_head_that_shares_the_embedding_is_not_stored_and_comes_back(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "tiny", kind="llava_onevision", text="qwen2")
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    write_int8(folder, tmp_path / "int8")
    assert not any("scorer" in name for name in load_file(tmp_path / "int8" / "int8.safetensors"))
    with torch.inference_mode():
        expected = outputs(to_int8(load_checkpoint(folder, dtype=torch.bfloat16).model))
        found = outputs(load_int8_checkpoint(tmp_path / "int8").model)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_verify_and_inspect_know_it_and_its_parent(tmp_path: Path, stored: Path) -> None:
    assert is_stored_in_int8(stored)
    assert not is_stored_in_int8(tmp_path / "tiny")
    told = summarise(stored)
    assert (told.quantization, told.parent) == ("int8", "tiny")
    assert "int8" in told.parts[2].dtype
    assert [finding.kind for finding in verify_checkpoint(stored)] == ["elsewhere"]
    again = CliRunner().invoke(app, ["quantize", str(tmp_path / "tiny"), str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    assert summarise(tmp_path / "again").version == told.version


def test_nothing_but_a_worker_of_ours_takes_it(tmp_path: Path, stored: Path) -> None:
    refused: list[Callable[[], object]] = [
        lambda: load_checkpoint(stored),
        lambda: export_for_transformers(stored, tmp_path / "hf"),
        lambda: export_original(stored, tmp_path / "original"),
        lambda: write_int8(stored, tmp_path / "twice"),
    ]
    for attempt in refused:
        with pytest.raises(CheckpointError, match=r"stored in int8.*take the checkpoint that it was made from"):
            attempt()
    with pytest.raises(OSError, match="no file named"):
        LlavaNextForConditionalGeneration.from_pretrained(stored)


def damage(stored: Path, change: Callable[[Tensors], object]) -> None:
    file = stored / "int8.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def set_nan(tensors: Tensors) -> None:
    tensors[f"{QKV}.scales"][3] = torch.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({f"{QKV}.weight": t[f"{QKV}.weight"].float()}), "is stored as float32, expected int8"),
        (lambda t: t.pop(f"{QKV}.scales"), f"{QKV}.scales is missing"),
        (
            lambda t: t.update({f"{QKV}.scales": t[f"{QKV}.scales"][:-1].clone()}),
            r"has shape \[\d+\], expected \[\d+\]",
        ),
        (lambda t: t.update({"language_model.more": torch.ones(2)}), "language_model.more is unexpected"),
        (set_nan, f"{QKV}.scales holds NaN or infinite numbers"),
    ],
    ids=["wrong dtype", "missing scale", "wrong shape", "unknown tensor", "NaN scale"],
)
def test_each_damage_is_one_clear_error_and_one_finding(
    change: Callable[[Tensors], object], message: str, stored: Path
) -> None:
    damage(stored, change)
    (stored / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=message):
        load_int8_checkpoint(stored)
    faults = [finding.text for finding in verify_checkpoint(stored) if finding.kind == "fault"]
    assert len(faults) == 1
    assert message.split(r"\[")[0].split("expected")[0] in faults[0]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"quant_method": "awq"}, "quant_method 'awq' is not served"),
        ({"quant_method": "tephra-int8", "layout": 2}, "layout 2 is not read, expected 1"),
        ("int8", "quant_method 'int8' is not served"),
    ],
)
def test_another_quantisation_is_named(section: object, message: str, tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": section}))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)
