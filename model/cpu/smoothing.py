"""Evens out a decoder's activations before they are quantised: SmoothQuant (arXiv 2211.10438).

Some channels of a language model are many times as large as the others, for every token alike; a scale for the whole
token then leaves the others few steps. So each channel is divided by a factor and its weights are multiplied by it. How
large the channels are is seen on a fixed random prompt, an image and words: it depends on the weights far more than on
what is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from model.attention import SegmentAttention
from model.language_model import DecoderLayer
from model.llava import LlavaModel

_WORDS = 256  # random tokens of the prompt
_PATCHES = 8  # the image is as many random colours across and down, blended
_SEED = 0
_TINY = 1e-5
_MOST = 1e4


@dataclass(frozen=True)
class LayerFactors:
    """What the input channels of a layer's products are to be divided by, float32: qkv [D], gate_up [D], down [I]."""

    qkv: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


@torch.inference_mode()
def smoothing_factors(model: LlavaModel) -> list[LayerFactors]:
    """For each layer of the decoder; the same for the same weights."""
    layers = [layer for layer in model.language_model.model.layers if isinstance(layer, DecoderLayer)]
    with _peaks([part for layer in layers for part in _watched(layer)]) as peaks:
        _run_sample(model)
    factors = []
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        together = (
            [attention.q_proj, attention.k_proj, attention.v_proj],
            [mlp.gate_proj, mlp.up_proj],
            [mlp.down_proj],
        )
        factors.append(
            LayerFactors(*(_factors(peaks[part], parts) for part, parts in zip(_watched(layer), together, strict=True)))
        )
    return factors


def _watched(layer: DecoderLayer) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """One linear layer for each input."""
    return layer.self_attn.q_proj, layer.mlp.gate_proj, layer.mlp.down_proj


def _factors(peaks: torch.Tensor, parts: list[nn.Linear]) -> torch.Tensor:
    """The geometric middle: afterwards activations and weights of a channel are equally large."""
    weights = torch.stack([part.weight.float().abs().amax(dim=0) for part in parts]).amax(dim=0)
    return (peaks.clamp(min=_TINY) / weights.clamp(min=_TINY)).sqrt().clamp(1 / _MOST, _MOST)


@contextmanager
def _peaks(parts: list[nn.Linear]) -> Iterator[dict[nn.Linear, torch.Tensor]]:
    """Largest absolute input of each channel, [K] float32, of all that the parts are given meanwhile."""
    peaks: dict[nn.Linear, torch.Tensor] = {}

    def note(part: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        assert isinstance(part, nn.Linear)
        largest = inputs[0].float().abs().amax(dim=0)
        peaks[part] = torch.maximum(peaks[part], largest) if part in peaks else largest

    handles = [part.register_forward_pre_hook(note) for part in parts]
    try:
        yield peaks
    finally:
        for handle in handles:
            handle.remove()


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
