"""The fused varlen kernels (flash-attn, or torch's own) on packed documents, against SDPA document by document."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_lwz.distributed import optional
from megatron_lwz.distributed.context_parallel import shard_indices
from megatron_lwz.models.attention import Pieces, attend_pieces, plan_pieces

pytestmark = pytest.mark.gpu

HEADS = [(14, 2, 64), (28, 4, 128), (5, 1, 128), (8, 8, 64)]
"""Query heads, key-value heads, dimension: 0.5B, 7B, 32B on 8 tensor-parallel ranks; not grouped."""
PACK = [0, 64, 1000, 1320, 1328, 1336]
FLASH = (False, True) if optional.unusable("flash_attn") is None else (False,)


def _inputs(tokens: int, pieces: Pieces, heads: tuple[int, int, int]) -> list[Tensor]:
    """Query, key and value in bf16 as the model has them: key and value are views of the fused projection."""
    queries, groups, dim = heads
    torch.manual_seed(1)
    query = torch.randn(tokens, queries, dim).cuda().bfloat16()
    return [query, *torch.randn(pieces.cu_k[-1], groups, 2, dim).cuda().bfloat16().unbind(2)]


@pytest.mark.parametrize("flash", FLASH)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("cp_size", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_fused_attention_equals_sdpa_with_gradients(
    cp_size: int, rank: int, heads: tuple[int, int, int], flash: bool
) -> None:
    """Under context parallelism queries are fewer than their keys, and the last query must still see the last key."""
    starts = torch.tensor(PACK, dtype=torch.int32)
    pieces = plan_pieces(starts, cp_size, rank)
    tokens = len(shard_indices(starts, cp_size, rank))
    narrow = [x.detach().requires_grad_() for x in _inputs(tokens, pieces, heads)]
    wide = [x.detach().cpu().float().requires_grad_() for x in narrow]
    weights = torch.randn(tokens, heads[0], heads[2]).bfloat16()
    found = attend_pieces(*narrow, plan_pieces(starts.cuda(), cp_size, rank), flash=flash)
    expected = attend_pieces(*wide, pieces)
    gradients = torch.autograd.grad(found, narrow, weights.cuda())
    expected_gradients = torch.autograd.grad(expected, wide, weights.float())
    for ours, reference in zip((found, *gradients), (expected, *expected_gradients), strict=True):
        relative = (ours.float().cpu() - reference).norm() / reference.norm()
        assert relative < 0.01


@pytest.mark.parametrize("flash", FLASH)
def test_no_document_sees_another(flash: bool) -> None:
    pieces = plan_pieces(torch.tensor(PACK, dtype=torch.int32, device="cuda"))
    query, key, value = _inputs(PACK[-1], pieces, HEADS[0])
    before = attend_pieces(query, key, value, pieces, flash=flash)
    key[PACK[1] : PACK[2]] = 7.0
    value[PACK[1] : PACK[2]] = torch.nan
    after = attend_pieces(query, key, value, pieces, flash=flash)
    others = torch.ones(PACK[-1], dtype=torch.bool, device="cuda")
    others[PACK[1] : PACK[2]] = False
    assert torch.equal(before[others], after[others])
    assert after[~others].isnan().all()


@pytest.mark.parametrize("flash", FLASH)
def test_no_layer_waits_for_the_gpu(flash: bool) -> None:
    """Everything that must be read back from the GPU is read by `plan_pieces`, once per micro-batch."""
    pieces = plan_pieces(torch.tensor(PACK, dtype=torch.int32, device="cuda"))
    inputs = [x.detach().requires_grad_() for x in _inputs(PACK[-1], pieces, HEADS[0])]

    def layer() -> None:
        out = attend_pieces(*inputs, pieces, flash=flash)
        torch.autograd.grad(out, inputs, out)

    layer()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer()
    finally:
        torch.cuda.set_sync_debug_mode("default")
