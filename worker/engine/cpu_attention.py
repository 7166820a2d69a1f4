"""`PagedAttention` on a CPU: kernels read and write the blocks in place.

In bfloat16 single tokens, which are what answers that run decode, are attended where their keys lie. Of a longer chunk
the keys are first laid side by side. As there, each chunk is attended on its own over exactly its own keys.
In float32 every token is attended where its keys lie, by sums in one order, so that a token's bits do not depend on the
chunk in which it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch

from model.attention import Attention
from model.cpu.kernels import lanes, team
from model.cpu.kernels.attention import attend_paged, store_paged
from model.cpu.kernels.dense import Plan, attend_some, padded
from model.cpu.kernels.wide_attention import Span, Tiles, attend_tiles
from worker.engine.paged_attention import KvCache, PagedAttention
from worker.engine.scheduler import Chunk


def attention_of(cache: KvCache, chunks: Sequence[Chunk]) -> Attention:
    """The attention of one step. `chunks` stand in the order of the flat batch."""
    pool = cache.pools[0]
    if pool.device.type == "cpu" and team.available():
        if pool.dtype == torch.bfloat16:
            return CpuAttention(cache, chunks)
        if pool.dtype == torch.float32 and lanes.fuses():
            return InvariantAttention(cache, chunks)
    return PagedAttention(cache, chunks)


@dataclass(frozen=True)
class _Tables:
    """What single tokens see: blocks [N, most], and from which token to which, [N] each; int32."""

    tables: torch.Tensor
    firsts: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True)
class _Span:
    """A longer chunk: rows of the flat batch, rows of the gathered keys, and which of these each query sees."""

    query: slice
    keys: slice
    plan: Plan


class CpuAttention:
    """The `model.attention.Attention` of one step in bfloat16."""

    def __init__(self, cache: KvCache, chunks: Sequence[Chunk]) -> None:
        self._cache = cache
        pool = cache.pools[0]
        ones = list(takewhile(lambda chunk: chunk.length == 1, chunks))
        self._ones = self._lay_tables(ones) if ones else None
        self._spans: list[_Span] = []
        gathered: list[np.ndarray] = []
        row, key = len(ones), 0
        for chunk in chunks[len(ones) :]:
            first = cache.first_key(chunk.start)
            slots = cache.slots(chunk.sequence.table.blocks, first, chunk.end)
            room = padded(len(slots))
            # Filled up with the chunk's own last key: what others left behind is never read.
            gathered.append(np.append(slots, np.repeat(slots[-1:], room - len(slots))))
            plan = Plan.of(self._limits(chunk) - first, cache.heads)
            self._spans.append(_Span(slice(row, row + chunk.length), slice(key, key + room), plan))
            row += chunk.length
            key += room
        written = [cache.slots(chunk.sequence.table.blocks, chunk.start, chunk.end) for chunk in chunks]
        self._written = torch.from_numpy(np.concatenate(written))
        self._gathered = torch.from_numpy(np.concatenate(gathered)) if gathered else None
        # One buffer for all layers: fresh memory for each would cost more than the copy.
        self._buffer = pool.new_empty((*pool.shape[:2], key, pool.shape[3]))

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [T, heads, head_dim], k and v [T, kv_heads, head_dim] -> [T, heads, head_dim]; all contiguous."""
        pool = self._cache.pools[layer]
        store_paged(k, v, pool, self._written)
        ones = self._ones
        if ones is not None:
            first = attend_paged(q, pool, ones.tables, ones.firsts, ones.lengths, self._cache.block_size)
            if self._gathered is None:
                return first
        mixed = torch.empty_like(q)
        if ones is not None:
            mixed[: len(first)] = first
        if self._gathered is not None:
            torch.index_select(pool, 2, self._gathered, out=self._buffer)
        for span in self._spans:
            keys, values = self._buffer[:, :, span.keys].unbind(0)
            mixed[span.query] = attend_some(q[span.query], keys, values, span.plan)
        return mixed

    def _lay_tables(self, ones: Sequence[Chunk]) -> _Tables:
        tables = [chunk.sequence.table.blocks for chunk in ones]
        laid = np.zeros((len(ones), max(map(len, tables))), np.int32)
        for row, table in zip(laid, tables, strict=True):
            row[: len(table)] = table
        firsts = np.asarray([self._cache.first_key(chunk.start) for chunk in ones], np.int32)
        lengths = np.asarray([chunk.end for chunk in ones], np.int32)
        return _Tables(*(torch.from_numpy(part) for part in (laid, firsts, lengths)))

    def _limits(self, chunk: Chunk) -> np.ndarray:
        """Of each of a chunk's tokens, the first that it sees and the one behind the last: int32 [T, 2]."""
        ends = np.arange(chunk.start + 1, chunk.end + 1, dtype=np.int32)
        window = self._cache.sliding_window
        firsts = np.zeros_like(ends) if window is None else np.maximum(0, ends - window)
        return np.stack([firsts, ends], axis=1)


class InvariantAttention:
    """The `model.attention.Attention` of one step in float32."""

    def __init__(self, cache: KvCache, chunks: Sequence[Chunk]) -> None:
        self._cache = cache
        spans, row = [], 0
        for chunk in chunks:
            spans.append(Span(row, chunk.length, chunk.start, chunk.sequence.table.blocks))
            row += chunk.length
        self._tiles = Tiles.of(spans, cache.heads // cache.pools[0].shape[1])
        written = [cache.slots(chunk.sequence.table.blocks, chunk.start, chunk.end) for chunk in chunks]
        self._written = torch.from_numpy(np.concatenate(written))

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [T, heads, head_dim], k and v [T, kv_heads, head_dim] -> [T, heads, head_dim]; q is contiguous."""
        pool, window = self._cache.pools[layer], self._cache.sliding_window
        pool[0].index_copy_(1, self._written, k.transpose(0, 1))
        pool[1].index_copy_(1, self._written, v.transpose(0, 1))
        return attend_tiles(q, pool, self._tiles, self._cache.block_size, window)
