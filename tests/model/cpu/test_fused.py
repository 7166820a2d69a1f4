"""The fused layers are the plain ones, to the rounding of bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model.attention import SegmentAttention
from model.checkpoint import load_checkpoint
from model.cpu.fused import can_fuse, fuse
from model.generations import GENERATIONS
from model.llava import LlavaModel
from model.tiny import make_tiny_checkpoint


def scores(model: LlavaModel, wanted: torch.Tensor | None = None) -> torch.Tensor:
    ids = torch.arange(60) * 7 % 200
    positions = torch.arange(60) % 30
    hidden = model.language_model(model.language_model.embed(ids), positions, SegmentAttention([30, 30]), wanted)
    return model.language_model.logits(hidden).float()


@pytest.mark.parametrize("generation", GENERATIONS)
@torch.inference_mode()
def test_every_generation_says_the_same(generation: str, tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "tiny", generation=generation)
    plain, exact = (load_checkpoint(folder, dtype=dtype).model for dtype in (torch.bfloat16, torch.float32))
    quick = fuse(load_checkpoint(folder, dtype=torch.bfloat16).model)
    size = plain.config.vision.image_size
    pixels = torch.randn(2, 3, size, size)
    for found in (lambda model: model.encode_tiles(pixels).float().flatten(0, 1), scores):
        errors = [
            float((1 - F.cosine_similarity(found(model), found(exact), dim=-1)).max()) for model in (plain, quick)
        ]
        assert errors[1] < 2 * errors[0] + 1e-4


@torch.inference_mode()
def test_only_the_wanted_rows_come_out(tmp_path: Path) -> None:
    model = load_checkpoint(make_tiny_checkpoint(tmp_path / "tiny"), dtype=torch.bfloat16).model
    wanted = torch.tensor([3, 29, 59])
    for kind in (model, fuse(model)):
        torch.testing.assert_close(scores(kind, wanted), scores(kind)[wanted], rtol=0.05, atol=0.05)


def test_only_bfloat16_on_a_cpu_has_kernels() -> None:
    assert can_fuse("cpu", torch.bfloat16)
    assert not can_fuse("cpu", torch.float32)
    assert not can_fuse("cuda", torch.bfloat16)


def test_a_processor_without_bfloat16_keeps_the_plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not can_fuse("cpu", torch.bfloat16)
