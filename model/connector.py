"""The connector: vision features to the language model's embedding space.

One linear layer in LLaVA-1.0, a two-layer MLP since 1.5. The lone layer is called `linear_1` too.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from model.activations import activation


class Connector(nn.Module):
    def __init__(
        self, vision_width: int, text_width: int, *, kind: Literal["mlp", "linear"], activation_name: str, bias: bool
    ) -> None:
        super().__init__()
        self.kind = kind
        self.linear_1 = nn.Linear(vision_width, text_width, bias=bias)
        if kind == "mlp":
            self.activation = activation(activation_name)
            self.linear_2 = nn.Linear(text_width, text_width, bias=bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[..., vision width] -> [..., text width]."""
        projected = self.linear_1(features)
        return projected if self.kind == "linear" else self.linear_2(self.activation(projected))
