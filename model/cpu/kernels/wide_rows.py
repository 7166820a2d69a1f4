"""What lies between matrix products, in float32: each row on its own, by the same instructions wherever it stands.

torch's elementwise functions go over a whole tensor in vectors and end with single numbers, computed otherwise; there a
number's last bit depends on its place. Sums, products and roots of two numbers are exact anywhere and stay torch's.
All tensors are float32, contiguous and on the CPU.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import carray

from model.cpu.kernels.rows import activate_row, activation_number, norm_row
from model.cpu.kernels.team import address, kernel, share


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [M, D], weight [D] -> [M, D]."""
    out = torch.empty_like(x)
    eps_bits = int(np.float32(eps).view(np.int32))
    _norm(*x.shape, eps_bits, x.data_ptr(), weight.data_ptr(), out.data_ptr())
    return out


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """x [M, N] -> [M, N], in place."""
    _activate(*x.shape, activation_number(activation), x.data_ptr())
    return x


def turns(angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """angles [M, N] -> cosines and sines, each [M, N]."""
    cos, sin = torch.empty_like(angles), torch.empty_like(angles)
    _turns(*angles.shape, angles.data_ptr(), cos.data_ptr(), sin.data_ptr())
    return cos, sin


@kernel
def _norm(place):
    a = carray(place, 6, np.int64)
    rows, width = a[0], a[1]
    eps = np.int32(a[2]).view(np.float32)
    x = carray(address(a[3]), (rows, width), np.float32)
    weight = carray(address(a[4]), width, np.float32)
    out = carray(address(a[5]), (rows, width), np.float32)
    row = np.empty(width, np.float32)
    first, last = share(rows)
    for m in range(first, last):
        row[:] = x[m]
        norm_row(row, weight, weight, False, eps, width)
        out[m] = row


@kernel
def _activate(place):
    a = carray(place, 4, np.int64)
    rows, width, kind = a[0], a[1], a[2]
    x = carray(address(a[3]), (rows, width), np.float32)
    row = np.empty(width, np.float32)
    first, last = share(rows)
    for m in range(first, last):
        row[:] = x[m]
        activate_row(row, kind, width)
        x[m] = row


@kernel
def _turns(place):
    a = carray(place, 5, np.int64)
    rows, width = a[0], a[1]
    angles = carray(address(a[2]), (rows, width), np.float32)
    cos = carray(address(a[3]), (rows, width), np.float32)
    sin = carray(address(a[4]), (rows, width), np.float32)
    first, last = share(rows)
    for m in range(first, last):
        for column in range(width):
            angle = np.float64(angles[m, column])
            cos[m, column] = np.float32(math.cos(angle))
            sin[m, column] = np.float32(math.sin(angle))
