"""Mixing is a rotation, the same in torch and in kernels, and leaves a product of two mixed sides as it is."""

from __future__ import annotations

import pytest
import torch

from model.cpu.kernels import rows
from model.cpu.kernels.hadamard import mix, parts_of, signs_of
from model.cpu.kernels.rows import Product, Quantized

WIDTH, PARTS = 192, 8


def wide(x: Quantized) -> torch.Tensor:
    return (x.values.float() - 128) * x.scales[:, None]


@pytest.mark.parametrize(("width", "parts"), [(576, 32), (1536, 64), (4864, 256), (64, 4), (49, 1), (16, 1)])
def test_a_row_is_cut_into_runs_of_at_least_one_vector(width: int, parts: int) -> None:
    assert parts_of(width) == parts


def test_mixing_keeps_lengths_and_spreads_what_is_large() -> None:
    x = torch.randn(5, WIDTH)
    torch.testing.assert_close(mix(x, PARTS).square().sum(dim=1) / PARTS, x.square().sum(dim=1))
    one = torch.zeros(WIDTH)
    one[50] = 7.0
    run = WIDTH // PARTS
    assert (mix(one, PARTS).abs() == 7).nonzero().flatten().tolist() == list(range(50 % run, WIDTH, run))
    assert torch.equal(mix(x, 1), x)


def test_channels_that_rise_together_do_not_add_up() -> None:
    for width in (576, 1024, 4096, 4864):
        signs = signs_of(width)
        assert set(signs.tolist()) == {1.0, -1.0}
        parts = parts_of(width)
        assert float(mix(torch.ones(width), parts).abs().max()) < 5 * parts**0.5


def test_a_product_of_two_mixed_sides_is_the_plain_one() -> None:
    x, weight = torch.randn(5, WIDTH), torch.randn(7, WIDTH)
    torch.testing.assert_close(mix(x, PARTS) @ mix(weight, PARTS).t() / PARTS, x @ weight.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parts", [1, 2, PARTS])
def test_every_kernel_that_quantises_mixes_first(parts: int) -> None:
    x = torch.randn(37, WIDTH).bfloat16()
    plain = rows.quantize(mix(x.float(), parts).bfloat16())
    found = rows.quantize(x, parts)
    torch.testing.assert_close(wide(found), wide(plain), rtol=0.02, atol=float(found.scales.max()))
    weight = torch.rand(WIDTH)
    normed = x.float() * torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + 1e-6) * weight
    found = rows.add_and_norm(x, None, weight, None, 1e-6, parts)
    assert bool(((wide(found) - mix(normed, parts)).abs() <= found.scales[:, None] * 0.51).all())
    sums = Product(torch.randn(37, 2 * WIDTH), torch.ones(37), None)
    left, right = sums.sums.chunk(2, dim=1)
    found = rows.activate(sums, "silu", gated=True, parts=parts)
    expected = mix(torch.nn.functional.silu(left) * right, parts)
    assert bool(((wide(found) - expected).abs() <= found.scales[:, None] * 0.51).all())


def test_a_nan_is_not_lost_in_the_mixture() -> None:
    x = torch.ones(2, WIDTH).bfloat16()
    x[0, 3], x[1, 5] = torch.nan, torch.inf
    assert not rows.quantize(x, PARTS).scales.isfinite().any()
