"""RMSNorm, rotary embedding and SwiGLU in plain torch and in C++: against their formulas and Megatron's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from megatron_lwz.distributed import platform
from megatron_lwz.distributed.context_parallel import shard_indices
from megatron_lwz.errors import ConfigError
from megatron_lwz.kernels import thin_product
from megatron_lwz.kernels.layers import CPP, PLAIN, LayerOps, cpp, layer_ops
from megatron_lwz.models.attention import plan_pieces
from tests.support.layers_cases import cases, strided_heads

CASES = cases()
built = pytest.mark.skipif(cpp.available() is not None, reason="the C++ kernels are not built")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-3)])
def test_equals_fp64_autograd(name: str, dtype: torch.dtype, tolerance: float) -> None:
    assert max(CASES[name].errors(PLAIN, dtype)) < tolerance


@built
@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-3)])
def test_cpp_equals_fp64_autograd(name: str, dtype: torch.dtype, tolerance: float) -> None:
    assert max(CASES[name].errors(CPP, dtype)) < tolerance


@built
@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("width", [8, 48])
def test_cpp_works_on_rows_of_any_number_and_on_views(width: int) -> None:
    torch.manual_seed(3)
    for rows in (0, 1, 63, 64, 65, 200):
        wide = torch.randn(rows, 2 * width + 5)
        inputs = [wide[:, 5:].detach().requires_grad_() for _ in range(2)]
        weight = torch.randn(2 * width, requires_grad=True)
        for ours, plain in ((CPP.swiglu, PLAIN.swiglu), (_normed(CPP, weight), _normed(PLAIN, weight))):
            found, exact = ours(inputs[0]), plain(inputs[1])
            torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)
            of_ours, of_plain = (
                torch.autograd.grad(y, x, torch.ones_like(y)) for y, x in ((found, inputs[0]), (exact, inputs[1]))
            )
            torch.testing.assert_close(of_ours, of_plain, rtol=1e-5, atol=1e-5)


@built
def test_the_stride_of_a_dimension_with_one_element_means_nothing() -> None:
    torch.manual_seed(4)
    weight = torch.randn(16)
    rows = torch.randn(1, 7, 16).transpose(0, 1)
    assert rows.is_contiguous() and rows.stride() == (16, 7 * 16, 1)
    with torch.no_grad():
        for compute in (CPP.swiglu, _normed(CPP, weight), lambda x: thin_product.multiply(x, torch.eye(16))):
            assert torch.equal(compute(rows), compute(rows.squeeze(1))[:, None])


@built
def test_a_norm_weight_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="shapes do not fit"):
        CPP.rms_norm(torch.randn(2, 64), torch.ones(8), 1e-6)


@pytest.mark.parametrize("ops", [PLAIN, pytest.param(CPP, marks=built)], ids=lambda ops: ops.name)
def test_a_gradient_of_a_gradient_is_refused(ops: LayerOps) -> None:
    x, weight, angles = torch.randn(2, 1, 32, requires_grad=True), torch.ones(32), torch.ones(2, 16)
    for y in (ops.rms_norm(x, weight, 1e-6), ops.swiglu(x), ops.rotate(x, x, angles, angles)[0]):
        (first,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()


def _normed(ops: LayerOps, weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: ops.rms_norm(x, weight, 1e-6)


@built
def test_cpp_gives_the_same_bits_on_any_number_of_threads() -> None:
    torch.manual_seed(4)
    x, weight = torch.randn(500, 256, requires_grad=True), torch.randn(256, requires_grad=True)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            y = CPP.swiglu(CPP.rms_norm(x, weight, 1e-6))
            found.append((y, *torch.autograd.grad(y, (x, weight), torch.ones_like(y))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@built
def test_the_sigmoid_of_large_numbers_is_exact() -> None:
    gate = torch.tensor([-1e4, -90.0, -87.5, -20.0, 0.0, 20.0, 90.0, 1e4])
    found = CPP.swiglu(torch.cat((gate, torch.ones(8))))
    torch.testing.assert_close(found, F.silu(gate), rtol=1e-6, atol=1e-30)


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
def test_without_a_gpu_the_cpu_does_the_work_and_triton_is_refused() -> None:
    assert layer_ops("torch") is PLAIN
    assert layer_ops("auto") is (PLAIN if cpp.available() else CPP)
    with pytest.raises(ConfigError, match="there is no GPU"):
        layer_ops("triton")


def test_without_a_compiler_torch_does_the_work_and_cpp_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(cpp, "_reason", "the C++ kernels are not built")
    if not torch.cuda.is_available():
        assert layer_ops("auto") is PLAIN
    with pytest.raises(ConfigError, match="not built"):
        layer_ops("cpp")
