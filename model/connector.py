"""The connector: vision features to the language model's embedding space, by a two-layer MLP (LLaVA-1.5 and later)."""

from __future__ import annotations

import torch
from torch import nn

from model.activations import activation


class Connector(nn.Module):
    def __init__(self, vision_width: int, text_width: int, *, activation_name: str, bias: bool) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, text_width, bias=bias)
        self.activation = activation(activation_name)
        self.linear_2 = nn.Linear(text_width, text_width, bias=bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[..., vision width] -> [..., text width]."""
        return self.linear_2(self.activation(self.linear_1(features)))
