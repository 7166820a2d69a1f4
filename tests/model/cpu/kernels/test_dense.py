"""Attention in two products gives what torch gives, to the rounding of bfloat16."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.cpu.kernels import dense
from model.cpu.kernels.dense import Plan, attend_all, attend_some, padded, side_by_side


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


@pytest.mark.parametrize("tokens", [1, 16, 37])
def test_every_query_sees_every_key_and_none_behind_them(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, keys, values = noise(6, tokens, 24), noise(6, padded(tokens), 24), noise(6, padded(tokens), 24)
    keys[:, tokens:] = 100
    expected = F.scaled_dot_product_attention(q.float(), keys[:, :tokens].float(), values[:, :tokens].float())
    values[:, tokens:] = 0
    whole = attend_all(q, keys, values, tokens)
    torch.testing.assert_close(whole.float(), expected, rtol=2e-2, atol=2e-2)
    monkeypatch.setattr(dense, "_SCORES", 1)  # one head at a time
    torch.testing.assert_close(attend_all(q, keys, values, tokens), whole, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("window", [None, 7], ids=["all before", "a window"])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=["heads", "groups"])
@pytest.mark.parametrize(("start", "end"), [(0, 40), (33, 61)], ids=["from the start", "a later chunk"])
@pytest.mark.parametrize("block", [128, 5], ids=["one part", "parts"])
def test_a_query_sees_what_its_limits_say(
    window: int | None, heads: tuple[int, int], start: int, end: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "_QUERIES", block)
    first = 0 if window is None else max(0, start - window + 1)  # the first key that is there
    q = noise(end - start, heads[0], 16)
    keys, values = (noise(heads[1], padded(end - first), 16) for _ in range(2))
    ends = np.arange(start + 1, end + 1) - first
    firsts = np.zeros_like(ends) if window is None else np.maximum(0, ends - window)
    found = attend_some(q, keys, values, Plan.of(np.stack([firsts, ends], axis=1), heads[0]))
    places = torch.arange(keys.shape[1])
    seen = (places >= torch.from_numpy(firsts)[:, None]) & (places < torch.from_numpy(ends)[:, None])
    shared = (part.float().repeat_interleave(heads[0] // heads[1], dim=0) for part in (keys, values))
    expected = F.scaled_dot_product_attention(q.transpose(0, 1).float(), *shared, attn_mask=seen).transpose(0, 1)
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


def test_a_number_that_is_none_spreads_over_its_own_query_alone() -> None:
    q, keys, values = noise(2, 5, 16), noise(2, 16, 16), noise(2, 16, 16)
    for sign in (1, -1):
        q[1, 3, 0] = sign * torch.nan
        found = attend_all(q, keys, values, 5)
        assert found[1, 3].isnan().all()
        assert int(found.isnan().any(dim=-1).sum()) == 1


def test_heads_come_to_stand_side_by_side() -> None:
    mixed = noise(6, 5, 4)
    assert torch.equal(side_by_side(mixed, 2), mixed.view(2, 3, 5, 4).permute(0, 2, 1, 3).reshape(10, 12))
