"""Attention of single tokens over keys and values that lie in blocks: read in place, once, by all heads of a group.

What a row is given depends on its own tokens alone, whatever other rows are beside it.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import carray

from model.cpu.kernels.numbers import exp, narrow, ordered_back, ordered_wide, wide
from model.cpu.kernels.pairs import TOKENS, WIDTH, mix_pairs, multiplies_pairs, score_pairs
from model.cpu.kernels.team import address, compiled, every, kernel, share

_ZERO = np.float32(0.0)


def attend_paged(
    q: torch.Tensor, pool: torch.Tensor, tables: torch.Tensor, firsts: torch.Tensor, lengths: torch.Tensor, block: int
) -> torch.Tensor:
    """q bfloat16 [N or more, heads, head_dim]; pool bfloat16 [2, kv_heads, slots, head_dim], keys and values.

    -> [N, heads, head_dim], of the first N rows of q.

    Row n sees the tokens firsts[n] .. lengths[n] - 1 of its sequence, whose blocks of `block` slots are tables[n]; all
    three are int32, tables [N, most blocks]. All tensors are contiguous.
    """
    rows, (_, heads, width) = len(lengths), q.shape
    kv_heads, slots = pool.shape[1:3]
    out = q.new_empty(rows, heads, width)
    scale = int(np.float32(width**-0.5).view(np.int32))
    places = (part.data_ptr() for part in (q, pool, tables, firsts, lengths, out))
    # Rows may be of any length, so a thread takes every n-th pair of row and key head: the first number is of pairs.
    attend = _attend_pairs if multiplies_pairs() and width % WIDTH == 0 else _attend
    attend(rows * kv_heads, rows, heads, kv_heads, width, slots, tables.shape[1], block, scale, *places)
    return out


def store_paged(k: torch.Tensor, v: torch.Tensor, pool: torch.Tensor, slots: torch.Tensor) -> None:
    """Puts k and v bfloat16 [T, kv_heads, head_dim] into pool [2, kv_heads, slots, head_dim], at slots [T] int64."""
    tokens, kv_heads, width = k.shape
    places = (part.data_ptr() for part in (k, v, pool, slots))
    _store(tokens, kv_heads, pool.shape[2], width, *places)


@kernel
def _store(place):
    a = carray(place, 8, np.int64)
    tokens, kv_heads, places, width = a[0], a[1], a[2], a[3]
    k = carray(address(a[4]), (tokens, kv_heads, width), np.uint16)
    v = carray(address(a[5]), (tokens, kv_heads, width), np.uint16)
    pool = carray(address(a[6]), (2, kv_heads, places, width), np.uint16)
    slots = carray(address(a[7]), tokens, np.int64)
    first, last = share(tokens)
    for token in range(first, last):
        for head in range(kv_heads):
            for column in range(width):
                pool[0, head, slots[token], column] = k[token, head, column]
                pool[1, head, slots[token], column] = v[token, head, column]


@kernel
def _attend(place):
    a = carray(place, 15, np.int64)
    pairs, rows, heads, kv_heads, width, slots, blocks, block = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
    scale = np.int32(a[8]).view(np.float32)
    group = heads // kv_heads
    q = carray(address(a[9]), (rows, heads, width), np.uint16)
    pool = carray(address(a[10]), (2, kv_heads, slots, width), np.uint16)
    tables = carray(address(a[11]), (rows, blocks), np.int32)
    firsts = carray(address(a[12]), rows, np.int32)
    lengths = carray(address(a[13]), rows, np.int32)
    out = carray(address(a[14]), (rows, heads, width), np.uint16)
    queries = np.empty((group, width), np.float32)
    mixed = np.empty((group, width), np.float32)
    number, threads = every()
    for pair in range(number, pairs, threads):
        row, head = pair // kv_heads, pair % kv_heads
        first, length = firsts[row], lengths[row]
        for member in range(group):
            for column in range(width):
                queries[member, column] = wide(q[row, head * group + member, column]) * scale
        scores = np.empty((group, length - first), np.float32)
        _score(queries, pool[0, head], tables[row], first, length, block, scores)
        for member in range(group):
            softmax(scores[member])
        _mix(scores, pool[1, head], tables[row], first, length, block, mixed)
        for member in range(group):
            for column in range(width):
                out[row, head * group + member, column] = narrow(mixed[member, column])


@kernel
def _attend_pairs(place):
    """The same with products of bfloat16 pairs: weights are rounded to bfloat16."""
    a = carray(place, 15, np.int64)
    pairs, rows, heads, kv_heads, width, slots, blocks, block = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
    scale = np.int32(a[8]).view(np.float32)
    group = heads // kv_heads
    tables = carray(address(a[11]), (rows, blocks), np.int32)
    firsts = carray(address(a[12]), rows, np.int32)
    lengths = carray(address(a[13]), rows, np.int32)
    out = carray(address(a[14]), (rows, heads, width), np.uint16)
    mixed = np.empty((group, width), np.float32)
    number, threads = every()
    for pair in range(number, pairs, threads):
        row, head = pair // kv_heads, pair % kv_heads
        first, count = firsts[row], lengths[row] - firsts[row]
        many = (count + TOKENS - 1) // TOKENS
        # Filled up with the last token: what others left behind is never read.
        places = np.empty((many, TOKENS), np.int64)
        for token in range(many * TOKENS):
            own = first + min(token, count - 1)
            slot = np.int64(tables[row, own // block]) * block + own % block
            places[token // TOKENS, token % TOKENS] = 2 * (head * slots + slot) * width
        queries = a[9] + 2 * (row * heads + head * group) * width
        scores = np.empty((group, many * TOKENS), np.float32)
        weights = np.zeros((group, many * TOKENS), np.uint16)
        keys, values = a[10], a[10] + 2 * kv_heads * slots * width
        places += keys
        for part in range(many):
            score_pairs(
                places[part].ctypes.data, queries, width, group, scores[:, part * TOKENS :].ctypes.data, many * TOKENS
            )
        places += values - keys
        mixed[:] = _ZERO
        factors = np.empty(group, np.float32)
        for member in range(group):
            factors[member] = weigh(scores[member, :count], scale, weights[member, :count])
        for part in range(many):
            mix_pairs(
                places[part].ctypes.data,
                weights[:, part * TOKENS :].ctypes.data,
                many * TOKENS,
                width,
                group,
                mixed.ctypes.data,
            )
        for member in range(group):
            for column in range(width):
                out[row, head * group + member, column] = narrow(mixed[member, column] * factors[member])


@compiled
def weigh(scores, scale, weights):
    """weights, bfloat16: e to the scores times scale, none above one; returned is what makes their sum one. A NaN
    spreads over all."""
    count = len(scores)
    highest = np.int32(-(2**31))
    for token in range(count):
        highest = max(highest, ordered_wide(scores[token]))
    top = ordered_back(highest)
    total = _ZERO
    for token in range(count):
        power = exp((scores[token] - top) * scale)
        weights[token] = narrow(power)
        total += power
    return np.float32(1.0) / total


@compiled
def _score(queries, keys, table, first, length, block, scores):
    group, width = queries.shape
    key = np.empty(width, np.float32)
    for token in range(first, length):
        slot = table[token // block] * block + token % block
        for column in range(width):
            key[column] = wide(keys[slot, column])
        for member in range(group):
            query = queries[member]
            total = _ZERO
            for column in range(width):
                total += query[column] * key[column]
            scores[member, token - first] = total


@compiled
def softmax(scores):
    """In place; a NaN spreads over all."""
    count = len(scores)
    highest = np.int32(-(2**31))
    for token in range(count):
        highest = max(highest, ordered_wide(scores[token]))
    top = ordered_back(highest)
    total = _ZERO
    for token in range(count):
        power = exp(scores[token] - top)
        scores[token] = power
        total += power
    factor = np.float32(1.0) / total
    for token in range(count):
        scores[token] *= factor


@compiled
def _mix(scores, values, table, first, length, block, mixed):
    group, width = mixed.shape
    value = np.empty(width, np.float32)
    mixed[:] = _ZERO
    for token in range(first, length):
        slot = table[token // block] * block + token % block
        for column in range(width):
            value[column] = wide(values[slot, column])
        for member in range(group):
            weight = scores[member, token - first]
            target = mixed[member]
            for column in range(width):
                target[column] += weight * value[column]
