"""Attention over blocks in place gives what torch gives over the same keys laid end to end."""

import pytest
import torch
import torch.nn.functional as F

from model.cpu.kernels.attention import attend_paged


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
