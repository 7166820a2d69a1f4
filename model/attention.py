"""How attention is asked for, and the plain way to answer: causal inside each segment of a flat batch.

The language model lays the tokens of many sequences end to end and calls an `Attention` for each layer. The engine
passes one that reads and writes its KV blocks; training and evaluation pass `SegmentAttention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F


class Attention(Protocol):
    """Mixes values; rotary positions are already in q and k, the scale is head_dim ** -0.5."""

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [T, heads, head_dim], k and v [T, kv_heads, head_dim] -> [T, heads, head_dim]."""


class SegmentAttention:
    """No token sees another segment, nor what comes after it in its own."""

    def __init__(self, lengths: Sequence[int], *, sliding_window: int | None = None) -> None:
        self._lengths = list(lengths)
        self._window = sliding_window

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k = k.repeat_interleave(groups, dim=1)
            v = v.repeat_interleave(groups, dim=1)
        mixed = [
            self._segment(*(part.transpose(0, 1).unsqueeze(0) for part in parts))
            for parts in zip(q.split(self._lengths), k.split(self._lengths), v.split(self._lengths), strict=True)
        ]
        return torch.cat(mixed)

    def _segment(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        length = q.shape[2]
        if self._window is None or length <= self._window:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            distance = torch.arange(length, device=q.device)[:, None] - torch.arange(length, device=q.device)
            visible = (distance >= 0) & (distance < self._window)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return mixed.squeeze(0).transpose(0, 1)  # [T, heads, head_dim]
