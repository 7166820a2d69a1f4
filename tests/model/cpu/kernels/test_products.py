"""A float32 product gives what torch gives, and each of its numbers the same bits whatever stands beside it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.cpu.kernels.products import linear

SHAPES = [(896, 256), (64, 320), (31, 33), (1, 5), (1030, 7), (2100, 12)]


def parts(depth: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(depth)
    weight = torch.randn(columns, depth, generator=generator) / depth**0.5
    return torch.randn(211, depth, generator=generator), weight, torch.randn(columns, generator=generator)


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format)
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("depth", "columns"), SHAPES)
def test_a_product_is_the_linear_layer(depth: int, columns: int) -> None:
    x, weight, bias = parts(depth, columns)
    for shift in (bias, None):
        expected = F.linear(x.double(), weight.double(), None if shift is None else shift.double())
        torch.testing.assert_close(linear(x, weight, shift).double(), expected, rtol=0, atol=3e-6)
    assert linear(x[:0], weight, bias).shape == (0, columns)


@pytest.mark.parametrize(("depth", "columns"), SHAPES)
@pytest.mark.usefixtures("threads")
def test_a_row_has_the_same_bits_in_any_batch_at_any_place(depth: int, columns: int) -> None:
    x, weight, bias = parts(depth, columns)
    alone = torch.cat([linear(row[None], weight, bias) for row in x])
    for rows in (2, 3, 4, 5, 6, 7, 8, 15, 31, 96, 97, 211):
        for first in (0, 1, 211 - rows):
            some = slice(first, min(first + rows, 211))
            assert torch.equal(linear(x[some].clone(), weight, bias), alone[some]), (rows, first)


def test_neither_threads_nor_the_columns_beside_it_change_a_number() -> None:
    x, weight, bias = parts(896, 256)
    before = torch.get_num_threads()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(linear(x, weight, bias))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    for first, last in ((0, 1), (3, 10), (250, 256)):
        some = linear(x, weight[first:last].contiguous(), bias[first:last].contiguous())
        assert torch.equal(some, found[0][:, first:last])


def test_what_is_no_number_stays_in_its_row() -> None:
    x, weight, bias = parts(31, 33)
    x[4, 3], x[9, 0] = torch.nan, torch.inf
    finite = linear(x, weight, bias).isfinite().all(dim=1)
    assert (~finite).nonzero().flatten().tolist() == [4, 9]
