"""Attention in float32 over keys and values that lie in blocks: of one token or of many, with the same bits.

Some tokens of a chunk go together, and the heads of a group with them: so keys and values are read once for all. What a
token is given is made from its own keys in the order in which they stand in its sequence, each sum by the same
operations; a key that a token beside it sees and it does not has a weight of zero, which changes no sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numba import carray

from model.cpu.kernels.attention import softmax
from model.cpu.kernels.lanes import LANES, ROWS, weigh
from model.cpu.kernels.products import multiply
from model.cpu.kernels.team import address, compiled, every, kernel

_TOGETHER = 48  # rows of scores that are made at once, one for each token and head of a group
_VECTORS = 4
_ZERO = np.float32(0.0)

_many, _one = weigh(ROWS, _VECTORS), weigh(1, _VECTORS)
_many_narrow, _one_narrow = weigh(ROWS, 1), weigh(1, 1)
_many_single, _one_single = weigh(ROWS, 1, lanes=1), weigh(1, 1, lanes=1)


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one sequence: `count` rows of the flat batch from `row` on, of which the first is the
    sequence's token `position`, and the sequence's blocks."""

    row: int
    count: int
    position: int
    blocks: Sequence[int]


@dataclass(frozen=True)
class Tiles:
    """The tokens of a step, some at a time: int32 tables [spans, most blocks], and of each tile its first row, how many
    rows, the first one's position and its table, int32 [tiles, 4]. Worked out once, used for every layer."""

    tables: torch.Tensor
    tiles: torch.Tensor

    @staticmethod
    def of(spans: Sequence[Span], group: int) -> Tiles:
        """`group`: how many heads share a key head."""
        tables = np.zeros((len(spans), max(len(span.blocks) for span in spans)), np.int32)
        size = max(1, _TOGETHER // group)
        tiles = []
        for number, (table, span) in enumerate(zip(tables, spans, strict=True)):
            table[: len(span.blocks)] = span.blocks
            for done in range(0, span.count, size):
                tiles.append((span.row + done, min(size, span.count - done), span.position + done, number))
        return Tiles(torch.from_numpy(tables), torch.tensor(tiles, dtype=torch.int32))


def attend_tiles(q: torch.Tensor, pool: torch.Tensor, tiles: Tiles, block: int, window: int | None) -> torch.Tensor:
    """q [T, heads, head_dim], pool [2, kv_heads, slots, head_dim] in blocks of `block` slots -> [T, heads, head_dim].

    Each token sees itself and those before it in its sequence, with a `window` that many. All are float32, contiguous.
    """
    kv_heads, slots, width = pool.shape[1:]
    out = torch.empty_like(q)
    scale = int(np.float32(width**-0.5).view(np.int32))
    pairs = len(tiles.tiles) * kv_heads
    sizes = (*q.shape[:2], kv_heads, width, slots, *tiles.tables.shape, block, window or 0, scale)
    places = (part.data_ptr() for part in (q, pool, tiles.tables, tiles.tiles, out))
    _attend(pairs, *sizes, *places)
    return out


@kernel
def _attend(place):
    a = carray(place, 16, np.int64)
    pairs, tokens, heads, kv_heads, width, slots = a[0], a[1], a[2], a[3], a[4], a[5]
    spans, blocks, block, window = a[6], a[7], a[8], a[9]
    scale = np.int32(a[10]).view(np.float32)
    group = heads // kv_heads
    q = carray(address(a[11]), (tokens, heads, width), np.float32)
    tables = carray(address(a[13]), (spans, blocks), np.int32)
    tiles = carray(address(a[14]), (pairs // kv_heads, 4), np.int32)
    out = carray(address(a[15]), (tokens, heads, width), np.float32)
    number, threads = every()
    for pair in range(number, pairs, threads):
        tile, head = tiles[pair // kv_heads], pair % kv_heads
        row, count, position, table = tile[0], tile[1], tile[2], tables[tile[3]]
        end = position + count
        begin = max(0, position + 1 - window) if window > 0 else 0
        rows, keys = count * group, end - begin
        queries = np.empty((rows, width), np.float32)
        for token in range(count):
            for member in range(group):
                for column in range(width):
                    queries[token * group + member, column] = q[row + token, head * group + member, column] * scale
        scores = np.zeros((rows, keys), np.float32)
        heads_keys = a[12] + 4 * head * slots * width
        heads_values = heads_keys + 4 * kv_heads * slots * width
        at = begin
        while at < end:
            many = min(block - at % block, end - at)
            slot = np.int64(table[at // block]) * block + at % block
            target = scores.ctypes.data + 4 * (at - begin)
            multiply(queries.ctypes.data, width, rows, heads_keys + 4 * slot * width, width, many, width, target, keys)
            at += many
        for token in range(count):
            last = position + token + 1
            first = max(0, last - window) if window > 0 else 0
            for member in range(group):
                line = scores[token * group + member]
                line[: first - begin] = _ZERO
                softmax(line[first - begin : last - begin])
                line[last - begin :] = _ZERO
        mixed = np.zeros((rows, width), np.float32)
        at = begin
        while at < end:
            many = min(block - at % block, end - at)
            slot = np.int64(table[at // block]) * block + at % block
            weights = scores.ctypes.data + 4 * (at - begin)
            _mix(weights, keys, rows, heads_values + 4 * slot * width, width, many, mixed.ctypes.data)
            at += many
        for token in range(count):
            for member in range(group):
                out[row + token, head * group + member] = mixed[token * group + member]


@compiled
def _mix(weights, stride, rows, values, width, count, mixed):
    """mixed [rows, width] += weights [rows, count] times values [count, width]."""
    column = 0
    while column < width:
        value = values + 4 * column
        left = width - column
        row = 0
        while row < rows:
            several = rows - row >= ROWS
            weight, target = weights + 4 * row * stride, mixed + 4 * (row * width + column)
            if left >= _VECTORS * LANES:
                if several:
                    _many(weight, stride, value, width, count, target, width)
                else:
                    _one(weight, stride, value, width, count, target, width)
            elif left >= LANES:
                if several:
                    _many_narrow(weight, stride, value, width, count, target, width)
                else:
                    _one_narrow(weight, stride, value, width, count, target, width)
            elif several:
                _many_single(weight, stride, value, width, count, target, width)
            else:
                _one_single(weight, stride, value, width, count, target, width)
            row += ROWS if several else 1
        column += _VECTORS * LANES if left >= _VECTORS * LANES else (LANES if left >= LANES else 1)
