"""The layer ops in Triton on a GPU: against fp64, in the whole policy, and beside what torch and Megatron offer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from megatron_lwz.kernels.layers import PLAIN, layer_ops
from tests.support.layers_cases import EPS, cases, policy_numbers, strided_heads

pytestmark = pytest.mark.gpu

CASES = cases()
TOKENS, HIDDEN, FEED_FORWARD, GROUPS, PER_GROUP, DIM = 16384, 3584, 18944, 4, 7, 128
"""One packed micro-batch of the 7B model on one rank."""


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-3)])
def test_equals_fp64_autograd(name: str, dtype: torch.dtype, tolerance: float) -> None:
    assert max(CASES[name].errors(layer_ops("triton"), dtype, "cuda")) < tolerance


def test_triton_is_what_auto_means_here() -> None:
    assert layer_ops("auto").name == "triton"


def test_the_policy_is_the_same_with_both_implementations() -> None:
    for triton, plain in zip(policy_numbers("triton"), policy_numbers("torch"), strict=True):
        torch.testing.assert_close(triton, plain, atol=1e-3, rtol=1e-3)  # TF32 may be on


def test_no_op_waits_for_the_gpu() -> None:
    ops = layer_ops("triton")
    x, weight = torch.randn(64, 1, 256, device="cuda"), torch.randn(256, device="cuda")
    query, key = strided_heads(64, 2, 3, 64, device="cuda")
    inputs = [x.requires_grad_(), weight.requires_grad_(), query, key]
    angles = torch.randn(64, 32, device="cuda")

    def once() -> None:
        turned = ops.rotate(query, key, angles.cos(), angles.sin())
        total = ops.swiglu(ops.rms_norm(x, weight, EPS)).sum() + turned[0].sum() + turned[1].sum()
        torch.autograd.grad(total, inputs)

    once()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        once()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_ratios_beside_torch_and_megatron(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints forward + backward times; a ratio below 1 is what Triton saves. Fails only where it would be a loss."""
    rows = {"RMSNorm": _norms(), "rotary": _rotations(), "SwiGLU": _swiglus()}
    with capsys.disabled():
        print(f"\nlayer ops, forward + backward, bf16, {TOKENS} tokens of the 7B model on one rank")
        for op, times in rows.items():
            for name, milliseconds in times.items():
                print(f"  {op:8} {name:18} {milliseconds:8.3f} ms   triton / it {times['triton'] / milliseconds:5.2f}")
    for times in rows.values():
        assert times["triton"] < times["torch"]


def _norms() -> dict[str, float]:
    x = torch.randn(TOKENS, 1, HIDDEN, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(HIDDEN, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    triton = layer_ops("triton")
    return {
        "triton": _milliseconds(lambda: triton.rms_norm(x, weight, EPS), x, weight),
        "torch": _milliseconds(lambda: PLAIN.rms_norm(x, weight, EPS), x, weight),
        "F.rms_norm": _milliseconds(lambda: F.rms_norm(x, (HIDDEN,), weight, EPS), x, weight),
    }


def _rotations() -> dict[str, float]:
    """Sixteen documents of unequal length; Megatron's way is called as its attention calls it, twice."""
    lengths = [256, 1792] * 8
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device="cuda")
    angles = torch.outer(torch.arange(max(lengths)), 1e6 ** -(torch.arange(DIM // 2) / (DIM // 2))).cuda()
    both_halves = torch.cat((angles, angles), -1)[:, None, None]
    chosen = torch.cat([angles[:length] for length in lengths])
    cos, sin = chosen.cos(), chosen.sin()
    kind = {"device": "cuda", "dtype": torch.bfloat16}
    _, key = strided_heads(TOKENS, GROUPS, PER_GROUP, DIM, **kind)
    query = torch.randn(TOKENS, GROUPS * PER_GROUP, DIM, requires_grad=True, **kind)
    settings = TransformerConfig(num_layers=1, hidden_size=HIDDEN, num_attention_heads=GROUPS * PER_GROUP)
    triton = layer_ops("triton")

    def megatron() -> tuple[Tensor, ...]:
        return tuple(
            apply_rotary_pos_emb(x, both_halves, settings, cu_seqlens=starts, cp_group=_Alone()) for x in (query, key)
        )

    return {
        "triton": _milliseconds(lambda: triton.rotate(query, key, cos, sin), query, key),
        "torch": _milliseconds(lambda: PLAIN.rotate(query, key, cos, sin), query, key),
        "Megatron": _milliseconds(megatron, query, key),
    }


class _Alone:
    """A context-parallel group of one rank, as far as Megatron's rotary embedding asks."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


def _swiglus() -> dict[str, float]:
    x = torch.randn(TOKENS, 1, 2 * FEED_FORWARD, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    triton = layer_ops("triton")
    return {
        "triton": _milliseconds(lambda: triton.swiglu(x), x),
        "torch": _milliseconds(lambda: PLAIN.swiglu(x), x),
        "Megatron, compiled": _milliseconds(lambda: bias_swiglu_impl(x, None), x),
    }


def _milliseconds(function: Callable[[], Tensor | tuple[Tensor, ...]], *inputs: Tensor) -> float:
    """Median of 20 runs of forward and backward, after 5 others."""
    times = []
    for _ in range(25):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        outputs = function()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.grad(outputs, inputs, outputs)  # the outputs serve as gradients: nothing else to allocate
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times[5:])[10]
