"""Linear layers in int8: weights by output channel, symmetric, by their largest value. Knows no model.

A layer is made with its weights as plain int8 numbers, which can be stored, and computes once it is packed: the layout
that oneDNN reads is its own affair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from model.cpu.kernels.hadamard import mix
from model.cpu.kernels.rows import Product, Quantized

_LIMIT = 127.0
_ROWS = 8  # that the packing is made for; other numbers are as quick with it
_ONE, _OFFSET = torch.tensor(1.0), torch.tensor(128)  # of activations; their scales are the rows'


class Int8Linear(nn.Module):
    """Linear layers over the same input, side by side. Takes quantised rows, gives a product to be scaled back.

    The rows must be mixed in as many `parts` as the weights were.
    """

    weight: torch.Tensor | None  # int8 [N, K], until it is packed
    scales: torch.Tensor  # float32 [N]
    bias: torch.Tensor | None  # float32 [N]

    def __init__(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None], parts: int = 1) -> None:
        super().__init__()
        self.parts = parts
        mixed = weights if parts == 1 else [mix(weight.float(), parts) / parts for weight in weights]
        quantized = [quantize_weight(weight) for weight in mixed]
        self.register_buffer("weight", torch.cat([values for values, _ in quantized]))
        self.register_buffer("scales", torch.cat([scales for _, scales in quantized]))
        bias = None
        if any(part is not None for part in biases):
            each = [torch.zeros_like(w[:, 0]) if b is None else b for w, b in zip(weights, biases, strict=True)]
            bias = torch.cat([part.detach().float() for part in each])
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, *layers: nn.Linear, factors: torch.Tensor | None = None, parts: int = 1) -> Int8Linear:
        """With `factors` [K], for inputs of which each channel is divided by its factor."""
        weights = [layer.weight if factors is None else layer.weight.float() * factors for layer in layers]
        return cls(weights, [layer.bias for layer in layers], parts)

    def divide_outputs(self, first: int, factors: torch.Tensor) -> None:
        """Divides each output channel from `first` on by its factor."""
        self.scales[first:] /= factors
        if self.bias is not None:
            self.bias[first:] /= factors

    def pack(self) -> None:
        """Lets the plain weights go; the layer can be computed now, and no longer stored."""
        weight = self.weight
        assert weight is not None, "packed already"
        # An opaque tensor, no buffer: nothing but this product can be done with it.
        self.packed = (torch.ops.onednn.qlinear_prepack(weight, [_ROWS, weight.shape[1]]),)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)  # weights are as far up as down
        self.weight = None

    def forward(self, x: Quantized) -> Product:
        sums = torch.ops.onednn.qlinear_pointwise(
            x.values,
            _ONE,
            _OFFSET,
            self.packed[0],
            self.scales,
            self.zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return Product(sums, x.scales, self.bias)


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, K] -> int8 [N, K] and the float32 scale [N] of each row."""
    wide = weight.detach().float()
    scales = wide.abs().amax(dim=1) / _LIMIT
    values = (wide / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round_().to(torch.int8)
    return values, scales
