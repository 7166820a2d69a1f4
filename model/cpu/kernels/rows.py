"""What lies between matrix products, in one pass each: norms, activation functions, rotary positions.

For int8 products what goes in is quantised row by row, and what comes out is scaled back, in the same pass.

A row is a token. Its scale is its largest absolute value over 127; by the scales of a weight's columns, found when the
weight was quantised, products are multiplied already. These were exact whole numbers before that, so a token's result
is the same whatever other rows are beside it. Where `parts` is more than one, a row is mixed before it is quantised
(`model.cpu.kernels.hadamard`), and the weights must have been.
All tensors are contiguous and on the CPU; shapes are given behind each name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import carray

from model.cpu.kernels.hadamard import mix_row, signs_of
from model.cpu.kernels.numbers import gelu, gelu_tanh, narrow, sigmoid, wide
from model.cpu.kernels.team import address, compiled, kernel, share

ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "gelu", "quick_gelu", "relu")
_ALIASES = {"gelu_new": "gelu_pytorch_tanh"}
_LIMIT = np.float32(127.0)
_ZERO = np.float32(0.0)


def activation_number(name: str) -> int:
    """The one by which kernels know an activation function."""
    return ACTIVATIONS.index(_ALIASES.get(name, name))


@dataclass(frozen=True)
class Quantized:
    """Rows of whole numbers, 128 too large, and what each row is to be multiplied by: uint8 [M, K], float32 [M].

    That they are kept without a sign is for oneDNN's sake, which has a quick product for those alone.
    """

    values: torch.Tensor
    scales: torch.Tensor

    @staticmethod
    def empty(rows: int, width: int) -> Quantized:
        return Quantized(torch.empty(rows, width, dtype=torch.uint8), torch.empty(rows))


@dataclass(frozen=True)
class Product:
    """A product whose rows are not scaled back yet: sums [M, N] times rows [M], plus bias [N]; all float32."""

    sums: torch.Tensor
    rows: torch.Tensor
    bias: torch.Tensor | None

    @property
    def pointers(self) -> tuple[int, int, int]:
        bias = 0 if self.bias is None else self.bias.data_ptr()
        return self.sums.data_ptr(), self.rows.data_ptr(), bias


def quantize(x: torch.Tensor, parts: int = 1) -> Quantized:
    """x bfloat16 [M, K]."""
    out = Quantized.empty(*x.shape)
    signs = signs_of(x.shape[1]).data_ptr()
    _quantize(*x.shape, parts, signs, x.data_ptr(), out.values.data_ptr(), out.scales.data_ptr())
    return out


def add_and_norm(
    x: torch.Tensor,
    product: Product | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    parts: int = 1,
) -> Quantized:
    """x bfloat16 [M, D] += product, in place; then its layer norm (without `bias` [D] its RMS norm), quantised."""
    out = Quantized.empty(*x.shape)
    _norm(x, product, weight, bias, eps, parts, out.values.data_ptr(), out.scales.data_ptr(), 0)
    return out


def add_and_norm_wide(
    x: torch.Tensor, product: Product | None, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """Likewise, but the normed rows are bfloat16 [M, D]."""
    out = torch.empty_like(x)
    _norm(x, product, weight, bias, eps, 1, 0, 0, out.data_ptr())
    return out


def _norm(
    x: torch.Tensor,
    product: Product | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    parts: int,
    values: int,
    scales: int,
    normed: int,
) -> None:
    added = (0, 0, 0) if product is None else product.pointers
    eps_bits = int(np.float32(eps).view(np.int32))
    shift = 0 if bias is None else bias.data_ptr()
    mixing = (parts, signs_of(x.shape[1]).data_ptr())
    _add_and_norm(*x.shape, x.data_ptr(), *added, weight.data_ptr(), shift, eps_bits, *mixing, values, scales, normed)


def add(x: torch.Tensor, product: Product) -> torch.Tensor:
    """x bfloat16 [M, D] += product, in place."""
    _dequantize(*x.shape, *product.pointers, x.data_ptr(), 0, x.data_ptr())
    return x


def scale_back(product: Product) -> torch.Tensor:
    """-> bfloat16 [M, N]."""
    out = torch.empty(product.sums.shape, dtype=torch.bfloat16)
    _dequantize(*out.shape, *product.pointers, out.data_ptr(), 0, 0)
    return out


def scale_back_wide(product: Product) -> torch.Tensor:
    """-> float32 [M, N]."""
    out = torch.empty(product.sums.shape)
    _dequantize(*out.shape, *product.pointers, 0, out.data_ptr(), 0)
    return out


def activate(product: Product, activation: str, *, gated: bool, parts: int = 1) -> Quantized:
    """The activation function of [M, N], quantised; `gated`: of the left half, times the right half, [M, N / 2]."""
    rows, columns = product.sums.shape
    width = columns // 2 if gated else columns
    out = Quantized.empty(rows, width)
    kind = activation_number(activation)
    sizes = (rows, width, int(gated), kind, parts)
    places = (signs_of(width).data_ptr(), *product.pointers, out.values.data_ptr(), out.scales.data_ptr())
    _activate(*sizes, *places)
    return out


def turn(
    product: Product, heads: int, kv_heads: int, head_dim: int, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values side by side in the product; cos and sin float32 [T, head_dim / 2].

    -> bfloat16 q [T, heads, head_dim], k and v [T, kv_heads, head_dim]; q and k are turned by their positions.
    """
    rows = product.sums.shape[0]
    q = torch.empty(rows, heads, head_dim, dtype=torch.bfloat16)
    k = torch.empty(rows, kv_heads, head_dim, dtype=torch.bfloat16)
    v = torch.empty_like(k)
    places = (part.data_ptr() for part in (cos, sin, q, k, v))
    _turn(rows, heads, kv_heads, head_dim, *product.pointers, *places)
    return q, k, v


def split(product: Product, batch: int, heads: int, room: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values side by side in the product [batch * T, 3 * heads * d], without positions to turn by.

    -> bfloat16 q [batch * heads, T, d], k and v [batch * heads, room, d], of which all behind T is zero.
    """
    sums = product.sums
    out = _room_for_heads(batch, len(sums) // batch, heads, room, sums.shape[1])
    places = (part.data_ptr() for part in out)
    _split(len(sums), batch, heads, room, sums.shape[1] // 3 // heads, *product.pointers, *places)
    return out


def split_wide(x: torch.Tensor, batch: int, heads: int, room: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`split`, of bfloat16 x [batch * T, 3 * heads * d]."""
    out = _room_for_heads(batch, len(x) // batch, heads, room, x.shape[1])
    places = (part.data_ptr() for part in (x, *out))
    _split_wide(len(x), batch, heads, room, x.shape[1] // 3 // heads, *places)
    return out


def _room_for_heads(
    batch: int, tokens: int, heads: int, room: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    each = width // 3 // heads
    q = torch.empty(batch * heads, tokens, each, dtype=torch.bfloat16)
    k, v = (torch.empty(batch * heads, room, each, dtype=torch.bfloat16) for _ in range(2))
    k[:, tokens:], v[:, tokens:] = 0, 0
    return q, k, v


def activate_wide(x: torch.Tensor, activation: str, *, gated: bool) -> torch.Tensor:
    """`activate`, from bfloat16 to bfloat16: x [M, N] -> [M, N], gated [M, N / 2]."""
    rows, columns = x.shape
    width = columns // 2 if gated else columns
    out = x.new_empty(rows, width)
    kind = activation_number(activation)
    _activate_wide(rows, width, int(gated), kind, x.data_ptr(), out.data_ptr())
    return out


def turn_wide(
    x: torch.Tensor, heads: int, kv_heads: int, head_dim: int, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`turn`, of queries, keys and values in bfloat16: x [T, (heads + 2 kv_heads) head_dim]."""
    rows = x.shape[0]
    q = x.new_empty(rows, heads, head_dim)
    k = x.new_empty(rows, kv_heads, head_dim)
    v = torch.empty_like(k)
    _turn_wide(rows, heads, kv_heads, head_dim, *(part.data_ptr() for part in (x, cos, sin, q, k, v)))
    return q, k, v


@compiled
def _quantize_row(row, values, width, parts, signs):
    """row float32, overwritten -> values uint8; returns the scale. A NaN among them makes the scale one."""
    mix_row(row, width, parts, signs)
    top = np.uint32(0)
    for column in range(width):
        top = max(top, np.uint32(np.float32(row[column]).view(np.uint32) & np.uint32(0x7FFFFFFF)))  # NaN is the largest
    largest = np.uint32(top).view(np.float32)
    factor = _LIMIT / largest if largest > _ZERO else _ZERO
    for column in range(width):
        values[column] = np.uint8(np.int32(np.rint(row[column] * factor)) + np.int32(128))
    return largest / _LIMIT


@kernel
def _quantize(place):
    a = carray(place, 7, np.int64)
    rows, width, parts = a[0], a[1], a[2]
    signs = carray(address(a[3]), width, np.float32)
    x = carray(address(a[4]), (rows, width), np.uint16)
    values = carray(address(a[5]), (rows, width), np.uint8)
    scales = carray(address(a[6]), rows, np.float32)
    row = np.empty(width, np.float32)
    first, last = share(rows)
    for m in range(first, last):
        for column in range(width):
            row[column] = wide(x[m, column])
        scales[m] = _quantize_row(row, values[m], width, parts, signs)


@compiled
def _scaled(row, sums, factor, bias, has_bias, width):
    """One row of a product, float32."""
    if has_bias:
        for column in range(width):
            row[column] = sums[column] * factor + bias[column]
    else:
        for column in range(width):
            row[column] = sums[column] * factor


@kernel
def _add_and_norm(place):
    a = carray(place, 14, np.int64)
    rows, width = a[0], a[1]
    x = carray(address(a[2]), (rows, width), np.uint16)
    sums = carray(address(a[3]), (rows, width), np.float32)
    factors = carray(address(a[4]), rows, np.float32)
    bias = carray(address(a[5]), width, np.float32)
    weight = carray(address(a[6]), width, np.float32)
    shift = carray(address(a[7]), width, np.float32)
    eps = np.int32(a[8]).view(np.float32)
    parts = a[9]
    signs = carray(address(a[10]), width, np.float32)
    values = carray(address(a[11]), (rows, width), np.uint8)
    scales = carray(address(a[12]), rows, np.float32)
    normed = carray(address(a[13]), (rows, width), np.uint16)
    row = np.empty(width, np.float32)
    first, last = share(rows)
    for m in range(first, last):
        if a[3] != 0:
            _scaled(row, sums[m], factors[m], bias, a[5] != 0, width)
            for column in range(width):
                x[m, column] = narrow(wide(x[m, column]) + row[column])
        for column in range(width):
            row[column] = wide(x[m, column])
        norm_row(row, weight, shift, a[7] != 0, eps, width)
        if a[13] != 0:
            for column in range(width):
                normed[m, column] = narrow(row[column])
        else:
            scales[m] = _quantize_row(row, values[m], width, parts, signs)


@compiled
def norm_row(row, weight, shift, centred, eps, width):
    """Layer norm in place, or RMS norm, which neither centres nor shifts."""
    mean = _ZERO
    if centred:
        for column in range(width):
            mean += row[column]
        mean /= np.float32(width)
    square = _ZERO
    for column in range(width):
        distance = row[column] - mean
        square += distance * distance
    factor = np.float32(1.0) / np.sqrt(square / np.float32(width) + eps)
    if centred:
        for column in range(width):
            row[column] = (row[column] - mean) * factor * weight[column] + shift[column]
    else:
        for column in range(width):
            row[column] = row[column] * factor * weight[column]


@kernel
def _dequantize(place):
    a = carray(place, 8, np.int64)
    rows, width = a[0], a[1]
    sums = carray(address(a[2]), (rows, width), np.float32)
    factors = carray(address(a[3]), rows, np.float32)
    bias = carray(address(a[4]), width, np.float32)
    out = carray(address(a[5]), (rows, width), np.uint16)
    out_wide = carray(address(a[6]), (rows, width), np.float32)
    added = carray(address(a[7]), (rows, width), np.uint16)
    row = np.empty(width, np.float32)
    first, last = share(rows)
    for m in range(first, last):
        if a[6] != 0:
            _scaled(out_wide[m], sums[m], factors[m], bias, a[4] != 0, width)
            continue
        _scaled(row, sums[m], factors[m], bias, a[4] != 0, width)
        if a[7] != 0:
            for column in range(width):
                out[m, column] = narrow(row[column] + wide(added[m, column]))
        else:
            for column in range(width):
                out[m, column] = narrow(row[column])


@compiled
def activate_row(row, kind, width):
    """The activation function of a float32 row, in place."""
    if kind == 0:
        for column in range(width):
            row[column] = row[column] * sigmoid(row[column])
    elif kind == 1:
        for column in range(width):
            row[column] = gelu_tanh(row[column])
    elif kind == 2:
        for column in range(width):
            row[column] = gelu(row[column])
    elif kind == 3:
        for column in range(width):
            row[column] = row[column] * sigmoid(np.float32(1.702) * row[column])
    else:
        for column in range(width):
            row[column] = row[column] if not row[column] < _ZERO else _ZERO


@kernel
def _activate(place):
    a = carray(place, 11, np.int64)
    rows, width, gated, kind, parts = a[0], a[1], a[2], a[3], a[4]
    signs = carray(address(a[5]), width, np.float32)
    stride = 2 * width if gated else width
    sums = carray(address(a[6]), (rows, stride), np.float32)
    factors = carray(address(a[7]), rows, np.float32)
    bias = carray(address(a[8]), stride if a[8] != 0 else 0, np.float32)
    values = carray(address(a[9]), (rows, width), np.uint8)
    scales = carray(address(a[10]), rows, np.float32)
    row, gate = np.empty(width, np.float32), np.empty(width, np.float32)
    first, last = share(rows)
    for m in range(first, last):
        _scaled(row, sums[m, :width], factors[m], bias[:width], a[8] != 0, width)
        activate_row(row, kind, width)
        if gated:
            _scaled(gate, sums[m, width:], factors[m], bias[width:], a[8] != 0, width)
            for column in range(width):
                row[column] *= gate[column]
        scales[m] = _quantize_row(row, values[m], width, parts, signs)


@kernel
def _turn(place):
    a = carray(place, 12, np.int64)
    rows, heads, kv_heads, width = a[0], a[1], a[2], a[3]
    total = (heads + 2 * kv_heads) * width
    half = width // 2
    sums = carray(address(a[4]), (rows, total), np.float32)
    factors = carray(address(a[5]), rows, np.float32)
    bias = carray(address(a[6]), total, np.float32)
    cos = carray(address(a[7]), (rows, half), np.float32)
    sin = carray(address(a[8]), (rows, half), np.float32)
    q = carray(address(a[9]), (rows, heads, width), np.uint16)
    k = carray(address(a[10]), (rows, kv_heads, width), np.uint16)
    v = carray(address(a[11]), (rows, kv_heads, width), np.uint16)
    row = np.empty(total, np.float32)
    first, last = share(rows)
    for m in range(first, last):
        _scaled(row, sums[m], factors[m], bias, a[6] != 0, total)
        for head in range(heads):
            _turn_head(row[head * width : (head + 1) * width], cos[m], sin[m], q[m, head], half)
        for head in range(kv_heads):
            start = (heads + head) * width
            _turn_head(row[start : start + width], cos[m], sin[m], k[m, head], half)
            start += kv_heads * width
            for column in range(width):
                v[m, head, column] = narrow(row[start + column])


@compiled
def _turn_head(x, cos, sin, out, half):
    """Pairs (i, i + half) are turned by the i-th angle."""
    for column in range(half):
        left, right = x[column], x[half + column]
        out[column] = narrow(left * cos[column] - right * sin[column])
        out[half + column] = narrow(right * cos[column] + left * sin[column])


@kernel
def _split(place):
    a = carray(place, 11, np.int64)
    rows, batch, heads, room, width = a[0], a[1], a[2], a[3], a[4]
    tokens, total = rows // batch, 3 * heads * width
    sums = carray(address(a[5]), (rows, total), np.float32)
    factors = carray(address(a[6]), rows, np.float32)
    bias = carray(address(a[7]), total, np.float32)
    q = carray(address(a[8]), (batch * heads, tokens, width), np.uint16)
    k = carray(address(a[9]), (batch * heads, room, width), np.uint16)
    v = carray(address(a[10]), (batch * heads, room, width), np.uint16)
    row = np.empty(total, np.float32)
    first, last = share(rows)
    for m in range(first, last):
        _scaled(row, sums[m], factors[m], bias, a[7] != 0, total)
        image, token = m // tokens, m % tokens
        for head in range(heads):
            start, place_of = head * width, image * heads + head
            for column in range(width):
                q[place_of, token, column] = narrow(row[start + column])
            start += heads * width
            for column in range(width):
                k[place_of, token, column] = narrow(row[start + column])
            start += heads * width
            for column in range(width):
                v[place_of, token, column] = narrow(row[start + column])


@kernel
def _split_wide(place):
    a = carray(place, 9, np.int64)
    rows, batch, heads, room, width = a[0], a[1], a[2], a[3], a[4]
    tokens = rows // batch
    x = carray(address(a[5]), (rows, 3, heads, width), np.uint16)
    q = carray(address(a[6]), (batch * heads, tokens, width), np.uint16)
    k = carray(address(a[7]), (batch * heads, room, width), np.uint16)
    v = carray(address(a[8]), (batch * heads, room, width), np.uint16)
    first, last = share(rows)
    for m in range(first, last):
        image, token = m // tokens, m % tokens
        for head in range(heads):
            place_of = image * heads + head
            for column in range(width):
                q[place_of, token, column] = x[m, 0, head, column]
                k[place_of, token, column] = x[m, 1, head, column]
                v[place_of, token, column] = x[m, 2, head, column]


@kernel
def _activate_wide(place):
    a = carray(place, 6, np.int64)
    rows, width, gated, kind = a[0], a[1], a[2], a[3]
    x = carray(address(a[4]), (rows, 2 * width if gated else width), np.uint16)
    out = carray(address(a[5]), (rows, width), np.uint16)
    row = np.empty(width, np.float32)
    first, last = share(rows)
    for m in range(first, last):
        for column in range(width):
            row[column] = wide(x[m, column])
        activate_row(row, kind, width)
        if gated:
            for column in range(width):
                row[column] *= wide(x[m, width + column])
        for column in range(width):
            out[m, column] = narrow(row[column])


@kernel
def _turn_wide(place):
    a = carray(place, 10, np.int64)
    rows, heads, kv_heads, width = a[0], a[1], a[2], a[3]
    half = width // 2
    x = carray(address(a[4]), (rows, heads + 2 * kv_heads, width), np.uint16)
    cos = carray(address(a[5]), (rows, half), np.float32)
    sin = carray(address(a[6]), (rows, half), np.float32)
    q = carray(address(a[7]), (rows, heads, width), np.uint16)
    k = carray(address(a[8]), (rows, kv_heads, width), np.uint16)
    v = carray(address(a[9]), (rows, kv_heads, width), np.uint16)
    row = np.empty(width, np.float32)
    first, last = share(rows)
    for m in range(first, last):
        for head in range(heads + kv_heads):
            for column in range(width):
                row[column] = wide(x[m, head, column])
            _turn_head(row, cos[m], sin[m], q[m, head] if head < heads else k[m, head - heads], half)
        for head in range(kv_heads):
            for column in range(width):
                v[m, head, column] = x[m, heads + kv_heads + head, column]
