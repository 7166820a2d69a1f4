"""Float32 attention over blocks: torch's values, with the same bits however a sequence was cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from model.cpu.kernels.wide_attention import Span, Tiles, attend_tiles

LENGTH = 150
WINDOWS = [None, 1, 20, 400]
SHAPES = [(14, 2, 64), (4, 4, 128), (6, 1, 24), (4, 2, 16), (6, 2, 80)]


@dataclass(frozen=True)
class Case:
    """One sequence in blocks that lie anywhere, among values of others that are no numbers."""

    q: torch.Tensor  # [LENGTH, heads, width]
    pool: torch.Tensor
    blocks: list[int]
    block: int

    @classmethod
    def make(cls, heads: int, kv_heads: int, width: int, block: int) -> Case:
        generator = torch.Generator().manual_seed(width + block)
        count = -(-LENGTH // block)
        blocks = torch.randperm(2 * count, generator=generator)[:count]
        pool = torch.full((2, kv_heads, 2 * count * block, width), torch.nan)
        slots = (blocks[:, None] * block + torch.arange(block)).flatten()[:LENGTH]
        pool[:, :, slots] = torch.randn(2, kv_heads, LENGTH, width, generator=generator)
        return cls(torch.randn(LENGTH, heads, width, generator=generator), pool, blocks.tolist(), block)

    def attend(self, lengths: Sequence[int], window: int | None) -> torch.Tensor:
        """The whole sequence in chunks of these lengths, one call each."""
        found, position = [], 0
        group = self.q.shape[1] // self.pool.shape[1]
        for length in lengths:
            tiles = Tiles.of([Span(0, length, position, self.blocks)], group)
            found.append(
                attend_tiles(self.q[position : position + length].clone(), self.pool, tiles, self.block, window)
            )
            position += length
        return torch.cat(found)

    def expected(self, window: int | None) -> torch.Tensor:
        slots = (torch.tensor(self.blocks)[:, None] * self.block + torch.arange(self.block)).flatten()[:LENGTH]
        keys, values = self.pool[:, :, slots].double()
        distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
        seen = (distance >= 0) & (distance < (window or LENGTH))
        q = self.q.double().transpose(0, 1)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen, enable_gqa=True).transpose(0, 1)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), SHAPES)
def test_tokens_see_themselves_and_those_before(
    heads: int, kv_heads: int, width: int, block: int, window: int | None
) -> None:
    case = Case.make(heads, kv_heads, width, block)
    torch.testing.assert_close(case.attend([LENGTH], window).double(), case.expected(window), rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), SHAPES)
def test_a_tokens_bits_do_not_depend_on_its_chunk(heads: int, kv_heads: int, width: int, window: int | None) -> None:
    case = Case.make(heads, kv_heads, width, 16)
    one_by_one = case.attend([1] * LENGTH, window)
    for lengths in ([LENGTH], [16] * 9 + [6], [7] * 21 + [3], [1, 100, 2, 47], [149, 1]):
        assert torch.equal(case.attend(lengths, window), one_by_one), lengths


def test_neither_other_sequences_nor_threads_nor_the_size_of_blocks_change_them() -> None:
    cases = [Case.make(14, 2, 64, 16), Case.make(14, 2, 64, 4)]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = [case.attend([LENGTH], None) for case in cases]
    torch.set_num_threads(3)
    for case, expected in zip(cases, alone, strict=True):
        spans = [Span(0, 3, 40, case.blocks), Span(3, 1, 149, case.blocks), Span(4, 90, 0, case.blocks)]
        rows = [slice(40, 43), slice(149, 150), slice(0, 90)]
        q = torch.cat([case.q[some] for some in rows])
        found = attend_tiles(q, case.pool, Tiles.of(spans, 7), case.block, None)
        assert torch.equal(found, torch.cat([expected[some] for some in rows]))
    torch.set_num_threads(before)
    laid = [(torch.tensor(case.blocks)[:, None] * case.block + torch.arange(case.block)).flatten() for case in cases]
    moved = Case(cases[0].q, cases[1].pool.clone(), cases[1].blocks, 4)
    moved.pool[:, :, laid[1][:LENGTH]] = cases[0].pool[:, :, laid[0][:LENGTH]]
    assert torch.equal(moved.attend([LENGTH], None), alone[0])
