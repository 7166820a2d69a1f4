"""Channels that are many times as large as the others no longer cost the others their steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model.attention import SegmentAttention
from model.checkpoint import load_checkpoint
from model.cpu import int8
from model.cpu.smoothing import LayerFactors, smoothing_factors
from model.llava import LlavaModel
from model.tiny import make_tiny_checkpoint

LOUD = (3, 17)  # channels


def loud_model(folder: Path) -> LlavaModel:
    """Two channels of every norm are a hundred times as large, and the weights behind them as much smaller."""
    model = load_checkpoint(folder, dtype=torch.bfloat16).model
    for layer in model.language_model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, parts in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            for channel in LOUD:
                norm.weight[channel] *= 128
                for part in parts:
                    part.weight[:, channel] /= 128
    return model


def scores(model: LlavaModel) -> torch.Tensor:
    ids = torch.arange(60) * 7 % 200
    hidden = model.language_model(model.language_model.embed(ids), torch.arange(60), SegmentAttention([60]))
    return model.language_model.logits(hidden).float()


def no_factors(model: LlavaModel) -> list[LayerFactors]:
    return [LayerFactors.ones(model.config.text) for _ in range(model.config.text.layers)]


@torch.inference_mode()
def test_loud_channels_cost_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_tiny_checkpoint(tmp_path / "tiny")
    exact = scores(loud_model(folder))
    smoothed = scores(int8.to_int8(loud_model(folder)))
    monkeypatch.setattr(int8, "smoothing_factors", no_factors)
    monkeypatch.setattr(int8, "parts_of", lambda width: 1)
    plain = scores(int8.to_int8(loud_model(folder)))
    errors = [float((1 - F.cosine_similarity(found, exact, dim=1)).mean()) for found in (smoothed, plain)]
    assert errors[0] < errors[1] / 4


@torch.inference_mode()
def test_factors_are_the_same_for_the_same_weights_and_see_the_loud_channels(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "tiny")
    first, again = (smoothing_factors(loud_model(folder)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        for name in ("qkv", "values", "gate_up", "down"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert set(one.qkv.abs().topk(2).indices.tolist()) == set(LOUD)
    plain = smoothing_factors(load_checkpoint(folder, dtype=torch.bfloat16).model)[0].qkv.abs()
    assert float(plain.max() / plain.median()) < 10


@torch.inference_mode()
def test_factors_and_mixing_change_nothing_but_the_rounding(tmp_path: Path) -> None:
    """Query heads share keys and values: all of it must cancel out."""
    folder = make_tiny_checkpoint(tmp_path / "tiny", kind="llava_onevision", text="qwen2")
    exact = scores(load_checkpoint(folder, dtype=torch.bfloat16).model)
    found = scores(int8.to_int8(load_checkpoint(folder, dtype=torch.bfloat16).model))
    assert float(F.cosine_similarity(found, exact, dim=1).min()) > 0.98
