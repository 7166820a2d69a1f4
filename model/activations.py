"""Activation functions by the names that config.json uses."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from model.errors import CheckpointError

Activation = Callable[[torch.Tensor], torch.Tensor]


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


_BY_NAME: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}


def activation(name: str) -> Activation:
    """Raises CheckpointError for a name that the family does not use."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise CheckpointError(f"activation {name!r}: expected one of {', '.join(sorted(_BY_NAME))}") from None
