"""Rotary position embeddings, in the variants that Llama, Mistral and Qwen2 configurations name.

Sources: RoFormer (arXiv 2104.09864), YaRN (2309.00071), the Llama 3.1 scaling. Angles are computed in float32 and the
half-split layout of Hugging Face checkpoints is used. `dynamic` (NTK) leaves positions within the context length as
they are, and nothing longer is served, so it equals `default` here.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from model.config import RopeConfig


class Rope(nn.Module):
    """Cosines and sines by position. Holds no parameters."""

    inverse_frequencies: torch.Tensor

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        super().__init__()
        frequencies, self.magnitude = inverse_frequencies(config, head_dim)
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)

    def forward(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """positions [T] -> cos, sin, each [T, 1, head_dim], ready to broadcast over heads."""
        angles = positions[:, None].float() * self.inverse_frequencies.float()  # [T, head_dim/2]
        angles = torch.cat([angles, angles], dim=-1)[:, None, :]
        return (angles.cos() * self.magnitude).to(dtype), (angles.sin() * self.magnitude).to(dtype)


class HalfRope(nn.Module):
    """The same for kernels: float32, each angle once."""

    def __init__(self, rope: Rope) -> None:
        super().__init__()
        self.rope = rope

    def forward(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """positions [T] -> cos, sin, each [T, head_dim / 2]."""
        cos, sin = self.rope(positions, torch.float32)
        half = cos.shape[-1] // 2
        return cos[:, 0, :half].contiguous(), sin[:, 0, :half].contiguous()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns x [T, heads, head_dim] by its position."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


def inverse_frequencies(config: RopeConfig, head_dim: int) -> tuple[torch.Tensor, float]:
    """[head_dim/2] float32 and the factor by which cosines and sines are multiplied."""
    plain = 1.0 / config.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim)
    if config.kind in ("default", "dynamic"):
        return plain, 1.0
    if config.kind == "linear":
        return plain / config.factor, 1.0
    if config.kind == "llama3":
        return _llama3(plain, config), 1.0
    return _yarn(plain, config, head_dim)


def _llama3(plain: torch.Tensor, config: RopeConfig) -> torch.Tensor:
    """Long waves are stretched, short ones kept, those between are blended."""
    context = config.original_context or 8192
    wavelength = 2 * math.pi / plain
    longest, shortest = context / config.low_freq_factor, context / config.high_freq_factor
    blend = (context / wavelength - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    between = (1 - blend) * plain / config.factor + blend * plain
    scaled = torch.where(wavelength > longest, plain / config.factor, plain)
    return torch.where((wavelength <= longest) & (wavelength >= shortest), between, scaled)


def _yarn(plain: torch.Tensor, config: RopeConfig, head_dim: int) -> tuple[torch.Tensor, float]:
    """Interpolates the dimensions that turn seldom within the original context, keeps those that turn often."""
    context = config.original_context or 4096

    def dimension(turns: float) -> float:
        return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(config.theta))

    low = max(math.floor(dimension(config.beta_fast)), 0)
    high = float(min(math.ceil(dimension(config.beta_slow)), head_dim - 1))
    if high == low:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    frequencies = plain / config.factor * ramp + plain * (1 - ramp)
    default = 0.1 * math.log(config.factor) + 1.0 if config.factor > 1 else 1.0
    return frequencies, config.attention_factor if config.attention_factor is not None else default
