"""Each kernel gives what plain torch gives, to the rounding of its output."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.activations import activation
from model.cpu.int8_linear import quantize_weight
from model.cpu.kernels import rows
from model.cpu.kernels.rows import Product, Quantized
from model.rope import rotate

ROWS, WIDTH, COLUMNS = 37, 128, 192  # not a multiple of the vectors' lengths, nor of the threads


@pytest.fixture
def product() -> tuple[Product, torch.Tensor]:
    """A product, and its numbers in float32."""
    generator = torch.Generator().manual_seed(0)
    values, columns = quantize_weight(torch.randn(COLUMNS, WIDTH, generator=generator) * 0.05)
    x = rows.quantize(torch.randn(ROWS, WIDTH, generator=generator).bfloat16())
    bias = torch.randn(COLUMNS, generator=generator)
    sums = (signed(x) @ values.float().t()) * columns
    return Product(sums, x.scales, bias), sums * x.scales[:, None] + bias


def signed(x: Quantized) -> torch.Tensor:
    return x.values.float() - 128


def wide(x: Quantized) -> torch.Tensor:
    return signed(x) * x.scales[:, None]


def half_a_step(x: Quantized) -> torch.Tensor:
    """The largest error of rounding to the nearest, [M, 1]."""
    return x.scales[:, None] * 0.5001


def test_rows_are_rounded_to_the_nearest_of_127_steps_of_their_own_largest_value() -> None:
    x = (torch.randn(ROWS, WIDTH) * torch.logspace(-6, 6, ROWS)[:, None]).bfloat16()
    found = rows.quantize(x)
    torch.testing.assert_close(found.scales, x.float().abs().amax(dim=1) / 127, rtol=1e-6, atol=0)
    assert bool((signed(found).abs().amax(dim=1) == 127).all())
    assert bool(((wide(found) - x.float()).abs() <= half_a_step(found)).all())


def test_a_row_of_zeros_stays_one_and_a_nan_is_not_lost() -> None:
    x = torch.zeros(3, WIDTH).bfloat16()
    x[1, 5], x[2, 7] = torch.nan, -torch.inf
    found = rows.quantize(x)
    assert float(found.scales[0]) == 0.0
    assert not signed(found)[0].any()
    assert not found.scales[1:].isfinite().any()


def test_scaling_back_adds_the_bias_and_rounds_to_bfloat16(product: tuple[Product, torch.Tensor]) -> None:
    raw, expected = product
    torch.testing.assert_close(rows.scale_back_wide(raw), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rows.scale_back(raw), rows.scale_back_wide(raw).bfloat16(), rtol=0, atol=0)
    bare = Product(raw.sums, raw.rows, None)
    assert raw.bias is not None
    torch.testing.assert_close(rows.scale_back_wide(bare), expected - raw.bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", rows.ACTIVATIONS)
def test_activations_are_torchs(name: str, product: tuple[Product, torch.Tensor]) -> None:
    raw, expected = product
    found = rows.activate(raw, name, gated=False)
    assert bool(((wide(found) - activation(name)(expected)).abs() <= half_a_step(found) + 1e-6).all())
    left, right = expected.chunk(2, dim=1)
    found = rows.activate(raw, name, gated=True)
    assert bool(((wide(found) - activation(name)(left) * right).abs() <= half_a_step(found) + 1e-5).all())


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_pytorch_tanh", "quick_gelu"])
def test_activations_hold_far_out(name: str) -> None:
    spots = torch.tensor([-1e4, -90.0, -20.0, -1e-4, 0.0, 1e-4, 20.0, 1e4])
    one_a_row = Product(torch.ones(8, 1), spots, None)
    found = wide(rows.activate(one_a_row, name, gated=False))
    torch.testing.assert_close(found, activation(name)(spots[:, None]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_queries_keys_and_values_are_split_by_heads(batch: int) -> None:
    heads, each, tokens, room = 4, 16, 11, 16
    raw = Product(torch.randn(batch * tokens, 3 * heads * each), torch.rand(batch * tokens), torch.randn(192))
    x = rows.scale_back(raw)
    expected = x.view(batch, tokens, 3, heads, each).permute(2, 0, 3, 1, 4).reshape(3, batch * heads, tokens, each)
    for parts in (rows.split(raw, batch, heads, room), rows.split_wide(x, batch, heads, room)):
        assert torch.equal(parts[0], expected[0])
        for part, wanted in zip(parts[1:], expected[1:], strict=True):
            assert torch.equal(part[:, :tokens], wanted)
            assert not part[:, tokens:].any()


@pytest.mark.parametrize("centred", [True, False], ids=["layer norm", "rms norm"])
def test_a_product_is_added_before_the_norm(centred: bool, product: tuple[Product, torch.Tensor]) -> None:
    raw, added = product
    x, weight = torch.randn(ROWS, COLUMNS).bfloat16(), torch.rand(COLUMNS)
    bias = torch.randn(COLUMNS) if centred else None
    total = (x.float() + added).bfloat16()
    if centred:
        expected = F.layer_norm(total.float(), (COLUMNS,), weight, bias, 1e-5)
    else:
        expected = F.rms_norm(total.float(), (COLUMNS,), weight, 1e-5)
    found = rows.add_and_norm(x, raw, weight, bias, 1e-5)
    torch.testing.assert_close(x, total, rtol=1e-2, atol=1e-2)
    assert bool(((wide(found) - expected).abs() <= half_a_step(found) + 2e-2).all())
    again = rows.add_and_norm(x, None, weight, bias, 1e-5)
    assert torch.equal(again.values, found.values), "without a product, x as it is"


def test_a_product_is_added_in_place(product: tuple[Product, torch.Tensor]) -> None:
    raw, added = product
    x = torch.randn(ROWS, COLUMNS).bfloat16()
    expected = (x.float() + added).bfloat16()
    assert rows.add(x, raw) is x
    torch.testing.assert_close(x, expected, rtol=1e-2, atol=1e-2)


def test_queries_and_keys_are_turned_and_values_are_not(product: tuple[Product, torch.Tensor]) -> None:
    raw, expected = product
    angles = torch.rand(ROWS, 16) * 6
    q, k, v = rows.turn(raw, 4, 1, 32, angles.cos(), angles.sin())
    both = torch.cat([angles, angles], dim=1)[:, None]
    parts = expected.view(ROWS, 6, 32)
    turned = rotate(parts[:, :5], both.cos(), both.sin())
    torch.testing.assert_close(
        torch.cat([q, k, v], dim=1).float(), torch.cat([turned, parts[:, 5:]], dim=1), rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize("name", rows.ACTIVATIONS)
def test_activations_go_from_bfloat16_to_bfloat16_too(name: str) -> None:
    x = torch.randn(ROWS, COLUMNS).bfloat16() * 4
    torch.testing.assert_close(
        rows.activate_wide(x, name, gated=False).float(), activation(name)(x.float()), rtol=1e-2, atol=1e-3
    )
    left, right = x.float().chunk(2, dim=1)
    torch.testing.assert_close(
        rows.activate_wide(x, name, gated=True).float(), activation(name)(left) * right, rtol=1e-2, atol=1e-3
    )


def test_bfloat16_queries_and_keys_are_turned_and_values_are_not() -> None:
    x = torch.randn(ROWS, COLUMNS).bfloat16()
    angles = torch.rand(ROWS, 16) * 6
    q, k, v = rows.turn_wide(x, 4, 1, 32, angles.cos(), angles.sin())
    both = torch.cat([angles, angles], dim=1)[:, None]
    parts = x.float().view(ROWS, 6, 32)
    torch.testing.assert_close(
        torch.cat([q, k], dim=1).float(), rotate(parts[:, :5], both.cos(), both.sin()), rtol=1e-2, atol=1e-2
    )
    assert torch.equal(v.float(), parts[:, 5:])


def test_a_rows_result_does_not_depend_on_its_neighbours(product: tuple[Product, torch.Tensor]) -> None:
    raw, _ = product
    whole = rows.activate(raw, "silu", gated=True)
    for some in (slice(0, 1), slice(5, 6), slice(11, 30)):
        part = Product(raw.sums[some].contiguous(), raw.rows[some].contiguous(), raw.bias)
        alone = rows.activate(part, "silu", gated=True)
        assert torch.equal(alone.values, whole.values[some])
        assert torch.equal(alone.scales, whole.scales[some])
