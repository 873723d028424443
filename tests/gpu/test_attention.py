"""The fused varlen kernels (flash-attn, or torch's own) against SDPA in fp32."""

from __future__ import annotations

import pytest
import torch

from megatron_lwz.distributed.context_parallel import shard_indices
from megatron_lwz.models.attention import attend_pieces, has_flash_attention, plan_pieces

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("cp_size", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_fused_attention_equals_sdpa_with_gradients(cp_size: int, rank: int) -> None:
    starts = torch.tensor([0, 64, 1000, 1320], dtype=torch.int32)
    mine = shard_indices(starts, cp_size, rank)
    pieces = plan_pieces(starts, cp_size, rank)
    torch.manual_seed(1)
    q = torch.randn(len(mine), 14, 64)
    k, v = torch.randn(2, pieces.cu_k[-1], 2, 64)
    weights = torch.randn(len(mine), 14, 64)
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    expected = attend_pieces(*inputs, pieces)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    on_gpu = [tensor.detach().cuda().bfloat16().requires_grad_() for tensor in inputs]
    assert on_gpu[0].is_cuda
    for flash in (False, True) if has_flash_attention() else (False,):
        found = attend_pieces(*on_gpu, plan_pieces(starts.cuda(), cp_size, rank), flash=flash)
        gradients = torch.autograd.grad((found.float() * weights.cuda()).sum(), on_gpu)
        for ours, reference in zip((found, *gradients), (expected, *expected_gradients), strict=True):
            relative = (ours.float().cpu() - reference).norm() / reference.norm()
            assert relative < 0.01
