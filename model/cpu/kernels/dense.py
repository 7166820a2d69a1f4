"""Attention of many queries over keys that lie side by side: two batched products, and a softmax in one pass between.

Quicker in bfloat16 on a CPU than torch's fused attention, whose small products find no instructions there. As in the
plain formula scores are rounded to bfloat16; the softmax itself is float32. Scores are made for some queries at a time,
so that they stay in the cache, and keys behind the last that those see are left out.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
import torch
from numba import carray

from model.cpu.kernels.numbers import exp, narrow, ordered, wide
from model.cpu.kernels.team import address, compiled, kernel, share

PAD = 16  # products are quicker where the number of keys is a multiple of it
_SCORES = 6 * 2**20  # that are held at once
_QUERIES = 128  # most at a time where keys are left out
_ZERO = np.float32(0.0)


class _Room(threading.local):
    """Memory for scores, kept: to have fresh pages each time would cost more than the softmax."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            self._flat = torch.empty(0, dtype=torch.bfloat16)

    def take(self, *shape: int) -> torch.Tensor:
        size = math.prod(shape)
        if len(self._flat) < size:
            with torch.inference_mode(False):  # else whoever comes outside of that mode could not write to it
                self._flat = torch.empty(size, dtype=torch.bfloat16)
        return self._flat[:size].view(shape)


_room = _Room()


def padded(keys: int) -> int:
    """So many places the keys need."""
    return -(-keys // PAD) * PAD


def attend_all(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """Every query sees the first `count` keys.

    bfloat16 q [B, T, d], keys and values [B, padded(count), d] -> [B, T, d]. What is behind `count` must be finite and
    is of no account.
    """
    whole, queries, _ = q.shape
    mixed = torch.empty_like(q)
    many = max(1, _SCORES // (queries * keys.shape[1]))
    for first in range(0, whole, many):
        part = slice(first, first + many)
        scores = torch.bmm(q[part], keys[part].transpose(1, 2), out=_room.take(len(q[part]), queries, keys.shape[1]))
        _softmax_all(len(scores) * queries, keys.shape[1], count, _scale(q), scores.data_ptr())
        torch.bmm(scores, values[part], out=mixed[part])
    return mixed


def side_by_side(mixed: torch.Tensor, batch: int) -> torch.Tensor:
    """[batch * heads, T, d] -> [batch * T, heads * d]."""
    tokens, width = mixed.shape[1:]
    return mixed.view(batch, -1, tokens, width).transpose(1, 2).reshape(batch * tokens, -1)


@dataclass(frozen=True)
class Part:
    """Queries first .. last - 1, which see nothing but the keys low .. high - 1."""

    first: int
    last: int
    low: int
    high: int


@dataclass(frozen=True)
class Plan:
    """Which keys each query sees, `limits` [T, 2] int32, from the first to the one behind the last; and in which parts
    the queries are taken. Worked out once, used for every layer."""

    limits: torch.Tensor
    parts: tuple[Part, ...]

    @staticmethod
    def of(limits: np.ndarray, heads: int) -> Plan:
        """`limits` int32 [T, 2], neither column ever falling."""
        queries, room = len(limits), padded(int(limits[-1, 1]) - int(limits[0, 0]))
        some = max(1, min(_QUERIES, _SCORES // (heads * room)))
        parts = []
        for first in range(0, queries, some):
            last = min(queries, first + some)
            low, high = int(limits[first, 0]) // PAD * PAD, padded(int(limits[last - 1, 1]))
            parts.append(Part(first, last, low, high))
        return Plan(torch.from_numpy(np.ascontiguousarray(limits, np.int32)), tuple(parts))


def attend_some(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, plan: Plan) -> torch.Tensor:
    """bfloat16 q [T, heads, d]; keys and values [kv_heads, padded(L), d] -> [T, heads, d].

    Heads of a group stand side by side. Values behind L must be finite.
    """
    queries, heads, width = q.shape
    kv_heads = len(keys)
    group = heads // kv_heads
    mixed = torch.empty_like(q)
    split = mixed.view(queries, kv_heads, group, width)
    for part in plan.parts:
        count, seen = part.last - part.first, slice(part.low, part.high)
        rows = q[part.first : part.last].view(count, kv_heads, group, width).permute(1, 2, 0, 3)
        rows = rows.reshape(kv_heads, group * count, width)
        room = _room.take(kv_heads, group * count, part.high - part.low)
        scores = torch.bmm(rows, keys[:, seen].transpose(1, 2), out=room)
        pointers = (plan.limits[part.first :].data_ptr(), scores.data_ptr())
        _softmax_some(heads * count, count, part.high - part.low, part.low, _scale(q), *pointers)
        done = torch.bmm(scores, values[:, seen])
        split[part.first : part.last] = done.view(kv_heads, group, count, width).permute(2, 0, 1, 3)
    return mixed


def _scale(q: torch.Tensor) -> int:
    """The bits of 1 / sqrt(d)."""
    return int(np.float32(q.shape[-1] ** -0.5).view(np.int32))


@kernel
def _softmax_all(place):
    a = carray(place, 5, np.int64)
    rows, width, count = a[0], a[1], a[2]
    scale = np.int32(a[3]).view(np.float32)
    scores = carray(address(a[4]), (rows, width), np.uint16)
    row = np.empty(width, np.float32)
    first, last = share(rows)
    for m in range(first, last):
        _softmax(scores[m, :count], row, scale)
        scores[m, count:] = np.uint16(0)


@kernel
def _softmax_some(place):
    a = carray(place, 7, np.int64)
    rows, queries, width, before = a[0], a[1], a[2], a[3]
    scale = np.int32(a[4]).view(np.float32)
    limits = carray(address(a[5]), (queries, 2), np.int32)
    scores = carray(address(a[6]), (rows, width), np.uint16)
    row = np.empty(width, np.float32)
    first, last = share(rows)
    for m in range(first, last):
        low, high = limits[m % queries, 0] - before, limits[m % queries, 1] - before
        scores[m, :low] = np.uint16(0)
        _softmax(scores[m, low:high], row, scale)
        scores[m, high:] = np.uint16(0)


@compiled
def _softmax(scores, row, scale):
    """Softmax of scores times scale, in place; `row` is room for as many numbers. A NaN spreads over all."""
    width = len(scores)
    highest = np.int16(-32768)
    for column in range(width):  # as whole numbers: the order of floats with NaN among them has no vectors
        highest = max(highest, ordered(scores[column]))
    top = wide(np.uint16(ordered(np.uint16(highest))))
    total = _ZERO
    for column in range(width):
        power = exp((wide(scores[column]) - top) * scale)
        row[column] = power
        total += power
    factor = np.float32(1.0) / total
    for column in range(width):
        scores[column] = narrow(row[column] * factor)
