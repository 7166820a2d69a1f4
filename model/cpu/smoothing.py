"""Evens out a decoder's activations before they are quantised, after SmoothQuant (arXiv 2211.10438).

Some channels of a language model are many times as large as the others, for every token alike; a scale for the whole
token then leaves the others few steps. So each channel is divided by a factor and its weights are multiplied by it. The
channels are mixed afterwards (`model.cpu.kernels.hadamard`), so what counts of one is not its peak but its mean square:
with the factors below, the product of both sides' mean squares, and so of their rounding errors, is least.

How large the channels are is seen on a fixed random prompt, an image and words: it depends on the weights far more than
on what is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from model.attention import SegmentAttention
from model.config import TextConfig
from model.language_model import DecoderLayer
from model.llava import LlavaModel

_WORDS = 256  # random tokens of the prompt
_PATCHES = 8  # the image is as many random colours across and down, blended
_SEED = 0
_TINY = 1e-10
_MOST = 1e4


@dataclass(frozen=True)
class LayerFactors:
    """What the input channels of a layer's products are to be divided by, float32: qkv [D], values [kv_heads *
    head_dim], gate_up [D], down [I]. Query heads that share a value share its factor."""

    qkv: torch.Tensor
    values: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor

    @classmethod
    def ones(cls, config: TextConfig, device: torch.device | str = "cpu") -> LayerFactors:
        """Factors that change nothing."""
        wide, kept = config.hidden_size, config.kv_heads * config.head_dim
        return cls(*(torch.ones(width, device=device) for width in (wide, kept, wide, config.intermediate_size)))


@torch.inference_mode()
def smoothing_factors(model: LlavaModel) -> list[LayerFactors]:
    """For each layer of the decoder; the same for the same weights."""
    layers = [layer for layer in model.language_model.model.layers if isinstance(layer, DecoderLayer)]
    groups = [_groups(layer) for layer in layers]
    with _energies([parts[0] for group in groups for parts in group]) as energies:
        _run_sample(model)
    shape = (model.config.text.kv_heads, -1, model.config.text.head_dim)  # of the heads' outputs, side by side
    factors = []
    for group in groups:
        sides = [(energies[parts[0]], _energy_of_weights(parts)) for parts in group]
        inputs, weights = (side.view(shape).mean(dim=1).flatten() for side in sides[1])
        sides[1] = (inputs, weights)
        factors.append(LayerFactors(*(_factors(*pair) for pair in sides)))
    return factors


def _groups(layer: DecoderLayer) -> tuple[Sequence[nn.Linear], ...]:
    """Linear layers by their input, in the order of `LayerFactors`."""
    attention, mlp = layer.self_attn, layer.mlp
    queries_keys_values = (attention.q_proj, attention.k_proj, attention.v_proj)
    return queries_keys_values, (attention.o_proj,), (mlp.gate_proj, mlp.up_proj), (mlp.down_proj,)


def _energy_of_weights(parts: Sequence[nn.Linear]) -> torch.Tensor:
    """Mean square over all outputs of each input channel's weights, float32 [K]."""
    total = sum(part.weight.float().square().sum(dim=0) for part in parts)
    return torch.as_tensor(total) / sum(part.out_features for part in parts)


def _factors(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Of mean squares: afterwards activations and weights of a channel are equally large."""
    return (inputs.clamp(min=_TINY) / weights.clamp(min=_TINY)).pow(0.25).clamp(1 / _MOST, _MOST)


@contextmanager
def _energies(parts: list[nn.Linear]) -> Iterator[dict[nn.Linear, torch.Tensor]]:
    """Mean square of each input channel, [K] float32, over all rows that the parts are given meanwhile."""
    sums: dict[nn.Linear, torch.Tensor] = {}
    counts: dict[nn.Linear, int] = {}

    def note(part: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        assert isinstance(part, nn.Linear)
        squares = inputs[0].float().square().sum(dim=0)
        sums[part] = sums[part] + squares if part in sums else squares
        counts[part] = counts.get(part, 0) + len(inputs[0])

    handles = [part.register_forward_pre_hook(note) for part in parts]
    means: dict[nn.Linear, torch.Tensor] = {}
    try:
        yield means
    finally:
        for handle in handles:
            handle.remove()
        means |= {part: total / counts[part] for part, total in sums.items()}


def _run_sample(model: LlavaModel) -> None:
    chance = torch.Generator().manual_seed(_SEED)
    side = model.config.vision.image_size
    colours = torch.randn(1, 3, _PATCHES, _PATCHES, generator=chance)
    pixels = torch.nn.functional.interpolate(colours, size=(side, side), mode="bilinear")
    words = torch.randint(model.config.text.vocab_size, (_WORDS,), generator=chance)
    words = words[words != model.config.image_token_id]
    embedded = model.language_model.embed(words.to(model.device))
    prompt = torch.cat([embedded[:4], model.encode_tiles(pixels)[0], embedded])
    length = min(len(prompt), model.config.text.context_length)
    positions = torch.arange(length, device=model.device)
    model.language_model(prompt[:length], positions, SegmentAttention([length], device=model.device))
