"""Mixes the channels of a row by a Hadamard matrix, so that none is much larger than the others.

A row is cut into `parts` runs of neighbours, a power of two; number i of each run becomes sums and differences of the
numbers i of all runs. Before that some channels change their sign, lest those that rise and fall together add up. All
this is a rotation but for its length, `parts` the square of it. In parts of whole vectors it costs a few additions a
number, where int8 would lose what one large channel takes from the others' scale (QuaRot, arXiv 2404.00456, mixes so in
front of such products).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from model.cpu.kernels.team import compiled

_NARROWEST = 16  # float32 numbers of a run: one vector of AVX-512


def parts_of(width: int) -> int:
    """The most parts into which a row of `width` is cut: 1, that is not at all, where it is odd or very short."""
    parts = 1
    while width % (2 * parts) == 0 and width // (2 * parts) >= _NARROWEST:
        parts *= 2
    return parts


def mix(x: torch.Tensor, parts: int) -> torch.Tensor:
    """float32 [..., K] -> the same, each row mixed."""
    width = x.shape[-1]
    run = width // parts
    if parts > 1:
        x = x * signs_of(width).to(x.device)
    while run < width:
        pairs = x.unflatten(-1, (-1, 2, run))
        left, right = pairs.unbind(-2)
        x = torch.stack([left + right, left - right], dim=-2).flatten(-3)
        run *= 2
    return x


@cache
def signs_of(width: int) -> torch.Tensor:
    """What each channel is multiplied by before, float32 [width]: 1.0 or -1.0, as good as drawn and always the same."""
    spread = (np.arange(width, dtype=np.uint64) + 1) * 0x9E3779B97F4A7C15
    spread = (spread ^ (spread >> np.uint64(29))) * 0xBF58476D1CE4E5B9
    return torch.from_numpy(np.where(spread >> np.uint64(63), np.float32(-1.0), np.float32(1.0)))


@compiled
def mix_row(row, width, parts, signs):
    """A float32 row, in place; the same sums in the same order as `mix`. signs as `signs_of` gives them."""
    if parts > 1:
        for column in range(width):
            row[column] *= signs[column]
    run = width // parts
    while run < width:
        for start in range(0, width, 2 * run):
            left, right = row[start : start + run], row[start + run : start + 2 * run]
            for column in range(run):
                above, below = left[column], right[column]
                left[column] = above + below
                right[column] = above - below
        run *= 2
