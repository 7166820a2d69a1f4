"""Attention over keys and values that lie in blocks, on any device. Knows chunks and tensors, not requests.

Single tokens, which are what answers that run decode, are attended together, each over its own keys filled up with one
of them that is hidden; each longer chunk on its own over exactly its own keys. What an earlier holder left in a block
is never read. What differs from layer to layer is the pool alone, so slots and masks are worked out once per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
import torch.nn.functional as F

from model.config import TextConfig
from worker.engine.scheduler import Chunk

_KEYS = 256  # the least number to which keys of single tokens are filled up; others are its multiples by powers of two


class KvCache:
    """One pool per layer, [2, kv_heads, blocks * block_size, head_dim]: keys and values of each token slot.

    Heads stand outside of slots, so that what is gathered for a head is one dense matrix: attention reads that faster.
    """

    def __init__(
        self, text: TextConfig, blocks: int, block_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_size = block_size
        self.heads = text.heads
        self.sliding_window = text.sliding_window
        shape = (2, text.kv_heads, blocks * block_size, text.head_dim)
        self.pools = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(text.layers)]

    def slots(self, blocks: Sequence[int], start: int, end: int) -> np.ndarray:
        """Where the tokens `start` .. `end` - 1 of a sequence with these blocks lie: int64 [end - start]."""
        first = start // self.block_size
        last = -(-end // self.block_size)
        rows = np.asarray(blocks[first:last], np.int64)[:, None] * self.block_size + np.arange(self.block_size)
        return rows.ravel()[start - first * self.block_size : end - first * self.block_size]

    def first_key(self, position: int) -> int:
        """The first token that the token at `position` sees."""
        return 0 if self.sliding_window is None else max(0, position - self.sliding_window + 1)


@dataclass(frozen=True)
class Singles:
    """Single tokens: where their own keys go, and which keys they see. int64, on any device."""

    written: torch.Tensor  # slots [N]
    slots: torch.Tensor  # [N, L]
    counts: torch.Tensor  # [N]: of `slots`, so many from the first on are seen

    @staticmethod
    def of(cache: KvCache, chunks: Sequence[Chunk]) -> Singles:
        """Of chunks of one token each, in memory."""
        rows = [cache.slots(chunk.sequence.table.blocks, cache.first_key(chunk.start), chunk.end) for chunk in chunks]
        counts = np.asarray([len(row) for row in rows], np.int64)
        slots = np.empty((len(rows), padded_keys(int(counts.max()))), np.int64)
        for place, row in zip(slots, rows, strict=True):
            place[: len(row)] = row
            place[len(row) :] = row[0]
        written = np.asarray([row[-1] for row in rows], np.int64)
        return Singles(torch.from_numpy(written), torch.from_numpy(slots), torch.from_numpy(counts))

    def to(self, device: torch.device) -> Singles:
        return Singles(self.written.to(device), self.slots.to(device), self.counts.to(device))


def padded_keys(count: int) -> int:
    """To how many the keys of single tokens are filled up: few different numbers, so that few shapes come."""
    return max(_KEYS, 1 << (count - 1).bit_length())


def attend_singles(q: torch.Tensor, pool: torch.Tensor, singles: Singles) -> torch.Tensor:
    """q [N, heads, head_dim], pool [2, kv_heads, slots, head_dim] -> [N, heads, head_dim]. Waits for no device."""
    keys, values = pool[:, :, singles.slots].transpose(1, 2).unbind(0)  # [N, kv_heads, L, head_dim]
    columns = torch.arange(singles.slots.shape[1], device=q.device)
    seen = (columns < singles.counts[:, None])[:, None, None]  # [N, 1, 1, L]
    # A single query sees all keys, so the heads of a group stand in for queries.
    grouped = q.reshape(len(q), keys.shape[1], -1, q.shape[-1])  # [N, kv_heads, group, head_dim]
    return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=seen).reshape(q.shape)


@dataclass(frozen=True)
class _Span:
    """A longer chunk: rows of the flat batch, and rows of the gathered keys (None: those just made)."""

    query: slice
    keys: slice | None
    mask: torch.Tensor | None  # [queries, keys], added to the scores
    causal: bool


class PagedAttention:
    """The `model.attention.Attention` of one step. `chunks` stand in the order of the flat batch."""

    def __init__(self, cache: KvCache, chunks: Sequence[Chunk]) -> None:
        self._cache = cache
        pool = cache.pools[0]
        self._spans: list[_Span] = []
        gathered: list[np.ndarray] = []
        ones = list(takewhile(lambda chunk: chunk.length == 1, chunks))
        self._ones = Singles.of(cache, ones).to(pool.device) if ones else None
        row, key = len(ones), 0
        for chunk in chunks[len(ones) :]:
            blocks = chunk.sequence.table.blocks
            query = slice(row, row + chunk.length)
            row += chunk.length
            first = cache.first_key(chunk.start)
            mask = self._mask(chunk, first)
            if chunk.start == 0:
                self._spans.append(_Span(query, None, mask, causal=mask is None))
                continue
            gathered.append(cache.slots(blocks, first, chunk.end))
            self._spans.append(_Span(query, slice(key, key + chunk.end - first), mask, causal=False))
            key += chunk.end - first
        written = [cache.slots(chunk.sequence.table.blocks, chunk.start, chunk.end) for chunk in chunks]
        self._written = torch.from_numpy(np.concatenate(written)).to(pool.device)
        self._gathered = torch.from_numpy(np.concatenate(gathered)).to(pool.device) if gathered else None
        # One buffer for all layers: fresh memory for each would cost more than the copy.
        self._buffer = pool.new_empty((*pool.shape[:2], key, pool.shape[3]))

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [T, heads, head_dim], k and v [T, kv_heads, head_dim] -> [T, heads, head_dim]."""
        pool = self._cache.pools[layer]
        pool[0].index_copy_(1, self._written, k.transpose(0, 1))
        pool[1].index_copy_(1, self._written, v.transpose(0, 1))
        if self._gathered is not None:
            torch.index_select(pool, 2, self._gathered, out=self._buffer)
        mixed = torch.empty_like(q)
        if self._ones is not None:
            count = len(self._ones.counts)
            mixed[:count] = attend_singles(q[:count], pool, self._ones)
        for span in self._spans:
            if span.keys is None:
                keys, values = k[span.query].transpose(0, 1), v[span.query].transpose(0, 1)
            else:
                keys, values = self._buffer[:, :, span.keys].unbind(0)
            mixed[span.query] = _attend(q[span.query], keys, values, span)
        return mixed

    def _mask(self, chunk: Chunk, first: int) -> torch.Tensor | None:
        """None where plain causality says it all."""
        window = self._cache.sliding_window
        narrow = window is not None and chunk.end - first > window
        if chunk.start == 0 and not narrow:
            return None
        pool = self._cache.pools[0]
        queries = torch.arange(chunk.start, chunk.end, device=pool.device)[:, None]
        keys = torch.arange(first, chunk.end, device=pool.device)
        hidden = keys > queries
        if window is not None:
            hidden |= keys <= queries - window
        mask = torch.zeros(hidden.shape, dtype=pool.dtype, device=pool.device)
        return mask.masked_fill_(hidden, -torch.inf)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, span: _Span) -> torch.Tensor:
    """q [T, heads, head_dim], k and v [kv_heads, L, head_dim] -> [T, heads, head_dim]."""
    mixed = F.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        k.unsqueeze(0),
        v.unsqueeze(0),
        attn_mask=span.mask,
        is_causal=span.causal,
        enable_gqa=q.shape[1] != k.shape[0],
    )
    return mixed.squeeze(0).transpose(0, 1)
