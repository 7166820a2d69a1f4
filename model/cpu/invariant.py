"""A loaded float32 model on a CPU whose every token comes out with the same bits, whatever is computed beside it.

Matrix libraries and torch's vectors choose by the shape of a whole batch how a row's sums are made; then the same
request says one thing alone and may say another in company. Here decoder and head are given products, norms, activation
functions and angles that make each row from itself alone (`model.cpu.kernels.products`, `wide_rows`). Attention is the
caller's: `worker.engine.cpu_attention` has one that keeps the promise. The vision tower and the connector stay torch's:
who runs their tiles one at a time always gives them the same shape.

The plain modules' parameters are taken over as they are; nothing is copied.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from model.cpu.kernels import lanes, team
from model.cpu.kernels.products import linear
from model.cpu.kernels.wide_rows import activate, rms_norm, turns
from model.language_model import DecoderLayer, RmsNorm
from model.llava import LlavaModel
from model.rope import Rope


def can_be_invariant(device: torch.device | str, dtype: torch.dtype) -> bool:
    """Whether there are kernels for such a model."""
    return torch.device(device).type == "cpu" and dtype == torch.float32 and team.available() and lanes.fuses()


def make_invariant(model: LlavaModel) -> LlavaModel:
    """Replaces the parts of decoder and head, in place."""
    language = model.language_model
    decoder, config = language.model, model.config.text
    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer), "the model's layers were replaced already"
        attention, mlp = layer.self_attn, layer.mlp
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            attention.add_module(name, InvariantLinear.of(getattr(attention, name)))
        for name in ("gate_proj", "up_proj", "down_proj"):
            mlp.add_module(name, InvariantLinear.of(getattr(mlp, name)))
        mlp.activation = partial(activate, activation=config.activation)
        layer.add_module("input_layernorm", InvariantNorm(layer.input_layernorm))
        layer.add_module("post_attention_layernorm", InvariantNorm(layer.post_attention_layernorm))
    decoder.add_module("norm", InvariantNorm(decoder.norm))
    decoder.add_module("rope", InvariantRope(decoder.rope))
    if config.tied_embeddings:
        language.scorer = InvariantLinear(decoder.embed_tokens.weight, None)
    else:
        language.add_module("lm_head", InvariantLinear.of(language.lm_head))
    return model


class InvariantLinear(nn.Module):
    """`nn.Linear`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    @classmethod
    def of(cls, layer: nn.Linear) -> InvariantLinear:
        return cls(layer.weight, layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> [M, N]."""
        return linear(x.contiguous(), self.weight, self.bias)


class InvariantNorm(nn.Module):
    """`model.language_model.RmsNorm`."""

    def __init__(self, norm: RmsNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[M, D] -> [M, D]."""
        return rms_norm(x.contiguous(), self.weight, self.eps)


class InvariantRope(nn.Module):
    """`model.rope.Rope`, with cosines and sines rounded from float64."""

    inverse_frequencies: torch.Tensor

    def __init__(self, rope: Rope) -> None:
        super().__init__()
        self.register_buffer("inverse_frequencies", rope.inverse_frequencies, persistent=False)
        self.magnitude = rope.magnitude

    def forward(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """positions [T] -> cos, sin, each [T, 1, head_dim]."""
        cos, sin = (part * self.magnitude for part in turns(positions[:, None].float() * self.inverse_frequencies))
        return torch.cat([cos, cos], dim=-1)[:, None, :], torch.cat([sin, sin], dim=-1)[:, None, :]
