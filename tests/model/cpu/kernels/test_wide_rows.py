"""Norms, activation functions and angles in float32: torch's values, with bits that do not depend on the place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from model.activations import activation
from model.cpu.kernels.rows import ACTIVATIONS
from model.cpu.kernels.wide_rows import activate, rms_norm, turns
from model.language_model import RmsNorm

ROWS, WIDTH = 67, 149  # no multiple of any vector's length


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)) * 3


def hold_each_row(x: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Every row alone is what it is among others."""
    whole = function(x.clone())
    for first, last in ((0, 1), (5, 6), (66, 67), (3, 10), (20, 67)):
        assert torch.equal(function(x[first:last].clone()), whole[first:last])


@pytest.mark.parametrize("name", [*ACTIVATIONS, "gelu_new"])
def test_activation_functions(x: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(activate(x.clone(), name), activation(name)(x), rtol=1e-5, atol=2e-6)
    hold_each_row(x, lambda rows: activate(rows, name))


def test_the_norm(x: torch.Tensor) -> None:
    norm = RmsNorm(WIDTH, 1e-6)
    torch.nn.init.normal_(norm.weight)
    weight = norm.weight.detach()
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), norm(x).detach(), rtol=1e-5, atol=1e-6)
    hold_each_row(x, lambda rows: rms_norm(rows, weight, 1e-6))


def test_angles_of_far_positions(x: torch.Tensor) -> None:
    angles = x.abs() * 30_000
    cos, sin = turns(angles)
    torch.testing.assert_close(cos, angles.double().cos().float(), rtol=0, atol=1e-7)
    torch.testing.assert_close(sin, angles.double().sin().float(), rtol=0, atol=1e-7)
    hold_each_row(angles, lambda rows: torch.cat(turns(rows), dim=1))
