"""A model in int8 says nearly what it says in bfloat16, and the same whatever is beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model.attention import SegmentAttention
from model.checkpoint import load_checkpoint
from model.cpu.int8 import check_int8, to_int8
from model.cpu.int8_linear import quantize_weight
from model.errors import ModelError
from model.generations import GENERATIONS
from model.llava import LlavaModel
from model.tiny import make_tiny_checkpoint


def load(folder: Path, *, int8: bool) -> LlavaModel:
    model = load_checkpoint(folder, dtype=torch.bfloat16).model
    return to_int8(model) if int8 else model


def logits_of(model: LlavaModel, ids: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    positions = torch.cat([torch.arange(length) for length in lengths])
    hidden = model.language_model(model.language_model.embed(ids), positions, SegmentAttention(lengths))
    return model.language_model.logits(hidden).float()


@pytest.mark.parametrize("generation", GENERATIONS)
@torch.inference_mode()
def test_features_and_logits_of_every_generation_stay_close(generation: str, tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "tiny", generation=generation)
    plain, quantized = load(folder, int8=False), load(folder, int8=True)
    size = plain.config.vision.image_size
    pixels = torch.randn(2, 3, size, size)
    features = [model.encode_tiles(pixels).float().flatten() for model in (plain, quantized)]
    assert float(F.cosine_similarity(*features, dim=0)) > 0.999
    ids = torch.arange(40) * 5 % 200
    scores = [logits_of(model, ids, [40]) for model in (plain, quantized)]
    assert float(F.cosine_similarity(*scores, dim=1).min()) > 0.98


@torch.inference_mode()
def test_a_tokens_logits_are_bit_equal_alone_and_in_company(tmp_path: Path) -> None:
    model = load(make_tiny_checkpoint(tmp_path / "tiny"), int8=True)
    ids = torch.arange(90) * 7 % 200
    together = logits_of(model, ids, [30, 30, 30])
    assert torch.equal(logits_of(model, ids[:30], [30]), together[:30])


def test_weights_are_scaled_by_output_channel() -> None:
    weight = torch.randn(8, 64) * torch.logspace(-8, 4, 8)[:, None]
    weight[3] = 0
    values, scales = quantize_weight(weight.bfloat16())
    assert bool(((values * scales[:, None] - weight.bfloat16().float()).abs() <= scales[:, None] * 0.5001).all())
    assert not values[3].any()


def test_what_int8_cannot_do_is_said(tmp_path: Path) -> None:
    model = load_checkpoint(make_tiny_checkpoint(tmp_path / "tiny"), dtype=torch.float32).model
    with pytest.raises(ModelError, match="bfloat16 activations, not float32"):
        to_int8(model)


def test_a_processor_without_the_instructions_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_int8("cpu", torch.bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ModelError, match="needs a processor with AVX-512 VNNI"):
        check_int8("cpu", torch.bfloat16)


def test_a_head_of_its_own_is_quantised_and_let_go(tmp_path: Path) -> None:
    model = load(make_tiny_checkpoint(tmp_path / "tiny", generation="llava-1.5"), int8=True)
    assert not any(isinstance(part, torch.nn.Linear) for part in model.modules())
    assert model.config.text.tied_embeddings or not hasattr(model.language_model, "lm_head")
