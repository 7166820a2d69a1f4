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


# Tokens a segment. Up to it, training in bf16 on a CPU, plain products take about half the time of torch's fused kernel
# forward and backward (on one core 62 against 124 ms at 200 tokens, 150 against 258 at 450; at 1024 239 against 177).
_EXPLICIT_UP_TO = 640


class SegmentAttention:
    """No token sees another segment, nor what comes after it in its own.

    Segments are laid side by side, padded to the longest, and mixed by one call; the padding is never read. `branches`
    [T] int64 parts a segment further: a token sees those of branch 0 and of its own branch. Raises ValueError for
    branches under a sliding window, which would have to be measured along each branch.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        branches: torch.Tensor | None = None,
        sliding_window: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        longest = max(lengths)
        columns = torch.arange(longest, device=device)
        kept = columns < torch.tensor(lengths, device=device)[:, None]  # [B, L]
        starts = torch.tensor([0, *lengths[:-1]], device=device).cumsum(0)
        self._shape = (len(lengths), longest)
        self._padded = len(set(lengths)) > 1
        self._gather = torch.where(kept, starts[:, None] + columns, 0).flatten()  # [B*L] -> flat token
        self._scatter = kept.flatten().nonzero().squeeze(1)  # [T] -> place in [B*L]
        self._mask: torch.Tensor | None = None  # [L, L] or [B, 1, L, L]
        self._hidden: torch.Tensor | None = None
        if sliding_window is not None and longest > sliding_window:
            if branches is not None:
                raise ValueError("independent turns cannot be longer than the sliding window")
            distance = columns[:, None] - columns
            self._mask = (distance >= 0) & (distance < sliding_window)
        if branches is not None:
            laid = branches[self._gather].view(*self._shape)
            visible = (laid[:, None, :] == 0) | (laid[:, None, :] == laid[:, :, None])  # [B, L, L]
            self._mask = (visible & (columns[:, None] >= columns))[:, None]

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k = k.repeat_interleave(groups, dim=1)
            v = v.repeat_interleave(groups, dim=1)
        q, k, v = (self._batch(part) for part in (q, k, v))  # [B, heads, L, head_dim]
        if self._explicit(q):
            mixed = self._attend_explicitly(q, k, v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask, is_causal=self._mask is None)
        flat = mixed.transpose(1, 2).flatten(0, 1)  # [B*L, heads, head_dim]
        return flat[self._scatter] if self._padded else flat

    def _explicit(self, q: torch.Tensor) -> bool:
        short = q.shape[2] <= _EXPLICIT_UP_TO and (self._mask is None or self._mask.dim() == 4)
        return short and q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu"

    def _attend_explicitly(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        batch, heads, length, width = q.shape
        if self._hidden is None:
            self._hidden = self._additive(q)
        q, k, v = (part.reshape(batch * heads, length, width) for part in (q, k, v))
        scores = torch.baddbmm(self._hidden, q, k.transpose(1, 2), alpha=width**-0.5)
        return torch.bmm(scores.softmax(-1), v).view(batch, heads, length, width)

    def _additive(self, q: torch.Tensor) -> torch.Tensor:
        """[B * heads, L, L]: 0 where a token may look, -inf elsewhere."""
        batch, heads, length, _ = q.shape
        if self._mask is None:
            return torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1).expand(batch * heads, -1, -1)
        hidden = torch.zeros(self._mask.shape, dtype=q.dtype).masked_fill_(~self._mask, -torch.inf)
        return hidden.expand(-1, heads, -1, -1).reshape(batch * heads, length, length)

    def _batch(self, x: torch.Tensor) -> torch.Tensor:
        laid = x[self._gather] if self._padded else x
        return laid.view(*self._shape, *x.shape[1:]).transpose(1, 2)
