"""The invariant layers are the plain ones, and a token's scores have the same bits in any batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.attention import SegmentAttention
from model.checkpoint import load_checkpoint
from model.cpu.invariant import can_be_invariant, make_invariant
from model.generations import GENERATIONS
from model.llava import LlavaModel
from model.tiny import make_tiny_checkpoint


class Itself:
    """Each token sees itself alone: attention that cannot depend on a batch."""

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return q + v.repeat_interleave(q.shape[1] // k.shape[1], dim=1)


def scores(model: LlavaModel, ids: torch.Tensor, *, alone: bool = False, wanted: torch.Tensor | None = None):
    language = model.language_model
    attention = Itself() if alone else SegmentAttention([len(ids)])
    return language.logits(language(language.embed(ids), ids * 3, attention, wanted))


@pytest.mark.parametrize("generation", GENERATIONS)
@torch.inference_mode()
def test_every_generation_says_what_the_plain_layers_say(generation: str, tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "tiny", generation=generation)
    plain, found = (load_checkpoint(folder, dtype=torch.float32).model for _ in range(2))
    make_invariant(found)
    ids, wanted = torch.arange(60) * 7 % 200, torch.tensor([3, 29, 59])
    torch.testing.assert_close(scores(found, ids), scores(plain, ids), rtol=0, atol=2e-4)
    assert torch.equal(scores(found, ids, wanted=wanted), scores(found, ids)[wanted])


@pytest.mark.parametrize("hidden", [64, 36])
@torch.inference_mode()
def test_a_tokens_scores_have_the_same_bits_in_any_batch(hidden: int, tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "tiny", text="qwen2", hidden_size=hidden, head_dim=hidden // 2)
    model = make_invariant(load_checkpoint(folder, dtype=torch.float32).model)
    ids = torch.arange(300) * 7 % 250
    whole = scores(model, ids, alone=True)
    for rows in (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 299):
        for first in (0, 1, 300 - rows):
            some = slice(first, min(first + rows, 300))
            assert torch.equal(scores(model, ids[some], alone=True), whole[some]), (rows, first)


def test_only_float32_on_a_cpu_has_such_kernels() -> None:
    assert can_be_invariant("cpu", torch.float32)
    assert not can_be_invariant("cpu", torch.bfloat16)
    assert not can_be_invariant("cuda", torch.float32)
