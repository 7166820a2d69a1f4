"""Attention over segments laid end to end, against each segment alone."""

import pytest
import torch
import torch.nn.functional as F

from model.attention import SegmentAttention

LENGTHS = (5, 17, 1, 9)


def parts(dtype: torch.dtype, *, train: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(LENGTHS), 6, 8), (sum(LENGTHS), 2, 8), (sum(LENGTHS), 2, 8))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_(train) for shape in shapes]


def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    mixed = []
    for rows in zip(q.split(LENGTHS), k.split(LENGTHS), v.split(LENGTHS), strict=True):
        a, b, c = (row.transpose(0, 1).float() for row in rows)
        distance = torch.arange(a.shape[1])[:, None] - torch.arange(a.shape[1])
        visible = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        mixed.append(F.scaled_dot_product_attention(a, b, c, attn_mask=visible, enable_gqa=True).transpose(0, 1))
    return torch.cat(mixed)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("dtype", "train", "tolerance"), [(torch.float32, False, 1e-6), (torch.bfloat16, True, 2e-2)])
def test_no_segment_sees_another_nor_its_own_future(
    dtype: torch.dtype, train: bool, tolerance: float, window: int | None
) -> None:
    q, k, v = parts(dtype, train=train)
    mixed = SegmentAttention(LENGTHS, sliding_window=window)(0, q, k, v)
    assert (mixed.float() - alone(q, k, v, window)).abs().max() <= tolerance


def test_gradients_in_bf16_are_those_of_fp32_to_its_precision() -> None:
    tensors = parts(torch.bfloat16, train=True)
    SegmentAttention(LENGTHS)(0, *tensors).float().square().sum().backward()
    wide = [tensor.detach().float().requires_grad_() for tensor in tensors]
    alone(*wide, None).square().sum().backward()
    for narrow, exact in zip(tensors, wide, strict=True):
        assert narrow.grad is not None and exact.grad is not None
        assert (narrow.grad.float() - exact.grad).norm() <= 2e-2 * exact.grad.norm()
