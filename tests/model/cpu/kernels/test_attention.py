"""Attention over blocks in place gives what torch gives over the same keys laid end to end."""

import pytest
import torch
import torch.nn.functional as F

from model.cpu.kernels import attention
from model.cpu.kernels.attention import attend_paged


@pytest.fixture(params=[True, False], ids=["pairs", "singly"], autouse=True)
def operation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the processor's operation on bfloat16 pairs, where it has one."""
    if not request.param:
        monkeypatch.setattr(attention, "multiplies_pairs", lambda: False)


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(14, 2, 64), (4, 4, 128), (6, 1, 24)])
@pytest.mark.parametrize("block", [1, 16])
def test_single_tokens_see_their_own_tokens_wherever_those_lie(
    heads: int, kv_heads: int, width: int, block: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 16, 17, 100, 33], dtype=torch.int32)
    firsts = torch.tensor([0, 0, 3, 90, 0], dtype=torch.int32)
    most = -(-100 // block)
    tables = torch.randperm(5 * most, generator=generator).view(5, most).to(torch.int32)
    pool = torch.randn(2, kv_heads, 5 * most * block, width, generator=generator).bfloat16()
    q = torch.randn(7, heads, width, generator=generator).bfloat16()
    found = attend_paged(q, pool, tables, firsts, lengths, block)
    assert found.shape == (5, heads, width)
    for row in range(5):
        slots = (tables[row].long()[:, None] * block + torch.arange(block)).flatten()[firsts[row] : lengths[row]]
        keys, values = pool[:, :, slots].float()
        grouped = q[row].float().view(1, kv_heads, heads // kv_heads, width)
        expected = F.scaled_dot_product_attention(grouped, keys[None], values[None]).view(heads, width)
        torch.testing.assert_close(found[row].float(), expected, rtol=1e-2, atol=1e-2)


def test_a_rows_result_does_not_depend_on_its_neighbours() -> None:
    pool = torch.randn(2, 2, 64, 32).bfloat16()
    q = torch.randn(3, 4, 32).bfloat16()
    tables = torch.tensor([[0, 1], [2, 3], [1, 0]], dtype=torch.int32)
    firsts, lengths = torch.zeros(3, dtype=torch.int32), torch.tensor([20, 32, 9], dtype=torch.int32)
    whole = attend_paged(q, pool, tables, firsts, lengths, 16)
    for row in range(3):
        one = slice(row, row + 1)
        assert torch.equal(attend_paged(q[one].clone(), pool, tables[one], firsts[one], lengths[one], 16), whole[one])


def test_nothing_is_read_but_a_rows_own_tokens() -> None:
    pool = torch.full((2, 2, 64, 32), torch.nan, dtype=torch.bfloat16)
    pool[:, :, 16:37] = torch.randn(2, 2, 21, 32).bfloat16()
    tables = torch.tensor([[1, 2, 3]], dtype=torch.int32)
    found = attend_paged(
        torch.randn(1, 8, 32).bfloat16(),
        pool,
        tables,
        torch.tensor([0], dtype=torch.int32),
        torch.tensor([21], dtype=torch.int32),
        16,
    )
    assert found.isfinite().all()


def test_what_is_not_finite_is_not_lost() -> None:
    pool = torch.randn(2, 1, 48, 32).bfloat16()
    pool[0, 0, 40] = torch.nan
    tables = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    first = torch.tensor([0], dtype=torch.int32)
    for length, whole in ((40, True), (41, False)):
        lengths = torch.tensor([length], dtype=torch.int32)
        found = attend_paged(torch.randn(1, 4, 32).bfloat16(), pool, tables, first, lengths, 16)
        assert found.isfinite().all() == whole
