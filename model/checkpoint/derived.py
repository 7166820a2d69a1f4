"""Tensors made from others on the way to a new checkpoint, row by row: LoRA merged in, a delta added, a table grown.

Sums are formed in float32 and rounded once, to the dtype of the tensor that is changed.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from model.checkpoint.tensors import StoredTensor
from model.errors import CheckpointError


def with_delta(delta: StoredTensor, base: StoredTensor) -> StoredTensor:
    """delta + base. The delta of a token table may have more rows than its base, for tokens that the base lacks."""
    if delta.shape[1:] != base.shape[1:] or delta.shape[0] < base.shape[0]:
        raise CheckpointError(
            f"{delta.file}: {delta.name} has shape {list(delta.shape)}, the base {list(base.shape)}; is this its base?"
        )
    in_base = base.shape[0]

    def rows(first: int, last: int) -> torch.Tensor:
        total = delta.rows(first, last).to(torch.float32, copy=True)
        if first < in_base:
            shared = min(last, in_base)
            total[: shared - first] += base.rows(first, shared)
        return total.to(delta.dtype)

    return replace(delta, rows=rows)


def with_lora(weight: StoredTensor, a: StoredTensor, b: StoredTensor, scale: float) -> StoredTensor:
    """weight + scale * b @ a, for a [rank, in] and b [out, rank]."""
    if len(weight.shape) != 2 or (b.shape[0], a.shape[1]) != weight.shape or a.shape[0] != b.shape[1]:
        raise CheckpointError(
            f"{a.file}: the adapter's {list(b.shape)} x {list(a.shape)} does not fit {weight.name} {list(weight.shape)}"
        )

    def rows(first: int, last: int) -> torch.Tensor:
        step = b.rows(first, last).float() @ a.rows(0, a.shape[0]).float()
        return step.mul_(scale).add_(weight.rows(first, last)).to(weight.dtype)

    return replace(weight, rows=rows)


def with_rows(table: StoredTensor, count: int) -> StoredTensor:
    """A token table of `count` rows: those behind its own are their mean.

    So a new token is embedded in the midst of the others, and its score is their average, which no sampler picks.
    """
    own = table.shape[0]
    mean: list[torch.Tensor] = []

    def average() -> torch.Tensor:
        if not mean:
            total = torch.zeros(table.shape[1:], dtype=torch.float64)
            for piece in table.pieces():
                total += piece.sum(0, dtype=torch.float64)
            mean.append((total / own).to(table.dtype))
        return mean[0]

    def rows(first: int, last: int) -> torch.Tensor:
        kept = table.rows(first, min(last, own)) if first < own else table.rows(0, 0)
        return torch.cat([kept, average().expand(last - max(first, own), -1)]) if last > own else kept

    return replace(table, shape=(count, *table.shape[1:]), rows=rows)


def constant(like: StoredTensor, name: str, shape: tuple[int, ...], value: float) -> StoredTensor:
    """A small tensor that no file holds, of the dtype of one that a file does."""
    whole = torch.full(shape, value, dtype=like.dtype)
    return StoredTensor(like.file, name, shape, like.dtype, lambda first, last: whole[first:last])
