"""Numbers inside kernels: bfloat16 as its bits, and functions that vectorise because they are plain arithmetic."""

from __future__ import annotations

import numpy as np

from model.cpu.kernels.team import inlined

_LOG2E = np.float32(1.4426950408889634)
_LOW, _HIGH = np.float32(-126.0), np.float32(126.0)
# 2**f on [-0.5, 0.5], Taylor; the next term is below 2e-7 of the value.
_C1, _C2, _C3 = np.float32(0.6931471806), np.float32(0.2402265070), np.float32(0.0555041087)
_C4, _C5, _C6 = np.float32(0.0096181291), np.float32(0.0013333558), np.float32(0.0001540353)
_ONE, _HALF = np.float32(1.0), np.float32(0.5)


@inlined
def wide(bits):
    """bfloat16 bits (uint16) -> float32."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@inlined
def narrow(value):
    """float32 -> bfloat16 bits, to the nearest, ties to even."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@inlined
def ordered(bits):
    """bfloat16 bits -> int16 that stand in the same order; and, of those, the bits again."""
    signed = np.int16(bits)
    return np.int16(signed ^ np.int16((signed >> np.int16(15)) & np.int16(0x7FFF)))


@inlined
def ordered_wide(value):
    """float32 -> int32 in the same order; a NaN is the largest or the least of all."""
    signed = np.float32(value).view(np.int32)
    return np.int32(signed ^ np.int32((signed >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@inlined
def ordered_back(place):
    return np.int32(place ^ np.int32((place >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@inlined
def exp(x):
    """e**x in float32 to about 2e-7; below 2**-126 it stays there."""
    y = min(max(x * _LOG2E, _LOW), _HIGH)
    whole = np.rint(y)
    f = y - whole
    power = _ONE + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * _C6)))))
    return np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32) * power


@inlined
def sigmoid(x):
    return _ONE / (_ONE + exp(-x))


@inlined
def gelu_tanh(x):
    """0.5 x (1 + tanh(u)) = x * sigmoid(2 u)."""
    u = np.float32(0.7978845608028654) * (x + np.float32(0.044715) * x * x * x)
    return x * sigmoid(u + u)


@inlined
def gelu(x):
    """x times the normal distribution function; erf by Abramowitz and Stegun 7.1.26, to 1.5e-7."""
    z = abs(x) * np.float32(0.7071067811865476)
    t = _ONE / (_ONE + np.float32(0.3275911) * z)
    tail = t * (
        np.float32(0.254829592)
        + t
        * (
            np.float32(-0.284496736)
            + t * (np.float32(1.421413741) + t * (np.float32(-1.453152027) + t * np.float32(1.061405429)))
        )
    )
    erf = _ONE - tail * exp(-z * z)
    return _HALF * x * (_ONE + (erf if x >= np.float32(0.0) else -erf))
