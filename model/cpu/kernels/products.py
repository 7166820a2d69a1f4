"""A matrix product in float32 whose every number is the same whatever rows and columns are computed beside it.

Libraries choose by the number of rows how they sum; here the order is fixed: along the depth in parts of `_DEPTH`, in
each as `lanes.dots` does it. Nor do the number of threads, the way a batch is cut or where tensors lie matter.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import carray

from model.cpu.kernels.lanes import COLUMNS, ROWS, dots
from model.cpu.kernels.team import address, compiled, kernel, share

_DEPTH = 1024  # numbers of a row at a time, which stay in the cache; part of the result
_BAND = 96  # rows at a time, likewise; not part of it
_HALF = ROWS // 2

_many, _some, _one = (dots(rows, COLUMNS) for rows in (ROWS, _HALF, 1))
_many_by_one, _some_by_one, _one_by_one = (dots(rows, 1) for rows in (ROWS, _HALF, 1))


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [M, K], weight [N, K], bias [N], float32 and contiguous -> [M, N]."""
    rows, depth = x.shape
    columns = len(weight)
    out = x.new_empty(rows, columns)
    shift = 0 if bias is None else bias.data_ptr()
    if rows:
        _linear(-(-columns // COLUMNS), rows, columns, depth, x.data_ptr(), weight.data_ptr(), shift, out.data_ptr())
    return out


@kernel
def _linear(place):
    a = carray(place, 8, np.int64)
    groups, rows, columns, depth = a[0], a[1], a[2], a[3]
    bias = carray(address(a[6]), columns, np.float32)
    out = carray(address(a[7]), (rows, columns), np.float32)
    first, last = share(groups)
    first, last = first * COLUMNS, min(last * COLUMNS, columns)
    for row in range(rows):
        if a[6] != 0:
            out[row, first:last] = bias[first:last]
        else:
            out[row, first:last] = np.float32(0.0)
    for start in range(0, depth, _DEPTH):
        many = min(_DEPTH, depth - start)
        weight = a[5] + 4 * (first * depth + start)
        for top in range(0, rows, _BAND):
            x = a[4] + 4 * (top * depth + start)
            target = a[7] + 4 * (top * columns + first)
            multiply(x, depth, min(_BAND, rows - top), weight, depth, last - first, many, target, columns)


@compiled
def multiply(a, a_stride, rows, b, b_stride, columns, depth, c, c_stride):
    """c [rows, columns] += a [rows, depth] times b [columns, depth] transposed, at addresses as in `lanes.dots`."""
    column = 0
    while column < columns:
        right, several = b + 4 * column * b_stride, columns - column >= COLUMNS
        row = 0
        while row < rows:
            left, target = a + 4 * row * a_stride, c + 4 * (row * c_stride + column)
            if rows - row >= ROWS:
                if several:
                    _many(left, a_stride, right, b_stride, depth, target, c_stride)
                else:
                    _many_by_one(left, a_stride, right, b_stride, depth, target, c_stride)
                row += ROWS
            elif rows - row >= _HALF:
                if several:
                    _some(left, a_stride, right, b_stride, depth, target, c_stride)
                else:
                    _some_by_one(left, a_stride, right, b_stride, depth, target, c_stride)
                row += _HALF
            else:
                if several:
                    _one(left, a_stride, right, b_stride, depth, target, c_stride)
                else:
                    _one_by_one(left, a_stride, right, b_stride, depth, target, c_stride)
                row += 1
        column += COLUMNS if several else 1
