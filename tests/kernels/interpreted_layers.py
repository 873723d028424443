"""The layer ops in Triton through the interpreter. Run by test_interpreted, in a process of its own."""

from __future__ import annotations

import pytest
import torch

from megatron_lwz.kernels.layers import PLAIN, layer_ops
from tests.support.layers_cases import cases, policy_numbers, strided_heads

CASES = cases()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-3)])
def test_equals_fp64_autograd(name: str, dtype: torch.dtype, tolerance: float) -> None:
    # The interpreter cuts fp32 down to bf16 where a GPU rounds.
    assert max(CASES[name].errors(layer_ops("triton"), dtype)) < tolerance


def test_heads_may_be_views_of_the_fused_projection() -> None:
    torch.manual_seed(0)
    query, key = strided_heads(6, 4, 3, 16)
    angles = torch.randn(6, 8)
    for ours, plain in zip(
        layer_ops("triton").rotate(query, key, angles.cos(), angles.sin()),
        PLAIN.rotate(query, key, angles.cos(), angles.sin()),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain)


def test_the_policy_is_the_same_with_both_implementations() -> None:
    for triton, torch_ in zip(policy_numbers("triton"), policy_numbers("torch"), strict=True):
        torch.testing.assert_close(triton, torch_, atol=1e-4, rtol=1e-4)
