"""RMSNorm, rotary embedding and SwiGLU in plain torch: against their formulas and Megatron's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from megatron_lwz.distributed import platform
from megatron_lwz.distributed.context_parallel import shard_indices
from megatron_lwz.errors import ConfigError
from megatron_lwz.kernels.layers import PLAIN, layer_ops
from megatron_lwz.models.attention import plan_pieces
from tests.support.layers_cases import cases, strided_heads

CASES = cases()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-3)])
def test_equals_fp64_autograd(name: str, dtype: torch.dtype, tolerance: float) -> None:
    assert max(CASES[name].errors(PLAIN, dtype)) < tolerance


class _Group:
    """One rank of a context-parallel group, as far as Megatron's rotary embedding asks."""

    def __init__(self, size: int, rank: int) -> None:
        self.size = lambda: size
        self.rank = lambda: rank


@pytest.mark.parametrize(("cp_size", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_packed_rotation_equals_megatrons_on_every_context_parallel_rank(cp_size: int, rank: int) -> None:
    platform.install()
    settings = TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=4)
    starts = torch.tensor([0, 12, 16, 24, 44], dtype=torch.int32)
    angles = torch.outer(torch.arange(20.0), 1e4 ** -(torch.arange(8) / 8))
    both_halves = torch.cat((angles, angles), -1)[:, None, None]
    tokens = len(shard_indices(starts, cp_size, rank))
    torch.manual_seed(2)
    heads = strided_heads(tokens, 4, 3, 16)
    chosen = angles[plan_pieces(starts, cp_size, rank).positions]
    ours = PLAIN.rotate(*heads, chosen.cos(), chosen.sin())
    megatrons = [
        apply_rotary_pos_emb(x, both_halves, settings, cu_seqlens=starts, cp_group=_Group(cp_size, rank)) for x in heads
    ]
    weights = [torch.randn(x.shape) for x in heads]
    for a, b in zip(ours, megatrons, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(_gradients(ours, heads, weights), _gradients(megatrons, heads, weights), strict=True):
        torch.testing.assert_close(a, b)


def _gradients(outputs, heads: tuple[Tensor, Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(list(outputs), list(heads), weights, retain_graph=True)


def test_swiglu_equals_megatrons_gated_linear_unit() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 1, 24)
    gate, up = x.chunk(2, dim=-1)
    torch.testing.assert_close(PLAIN.swiglu(x), F.silu(gate) * up)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA answers")
def test_without_a_gpu_torch_does_the_work_and_triton_is_refused() -> None:
    assert layer_ops("auto") is layer_ops("torch") is PLAIN
    with pytest.raises(ConfigError, match="there is no GPU"):
        layer_ops("triton")
