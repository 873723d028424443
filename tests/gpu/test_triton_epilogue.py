"""The Triton epilogue on a GPU: everything the interpreter is asked for, at the size of real chunks, too."""

from __future__ import annotations

import pytest
import torch

from megatron_lwz.kernels.linear_logprob import triton_kernels
from megatron_lwz.kernels.linear_logprob.epilogue import combine, empty_statistics
from megatron_lwz.kernels.linear_logprob.triton import TritonEpilogue, available, interpreted
from tests.support.triton_epilogue_checks import (
    TritonEpilogueChecks,
    exact_gradient,
    exact_statistics,
    row_gradients,
    some_labels,
    upstream,
)

pytestmark = pytest.mark.gpu

ROWS, COLUMNS = 16384, 19008
"""One micro-batch of 16k tokens and a 32B model's vocabulary on one of 8 GPUs."""
PART = 1024
"""Rows compared with fp64 at a time."""


class TestOnGpu(TritonEpilogueChecks):
    device = "cuda"

    def test_kernels_are_compiled(self) -> None:
        assert available() is None and not interpreted()


def real_logits(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(0)
    return (torch.randn(ROWS, COLUMNS, device="cuda", generator=generator) * 3).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_statistics_at_full_size(dtype: torch.dtype) -> None:
    z, labels = real_logits(dtype), some_labels(ROWS, COLUMNS, "cuda")
    found = [empty_statistics(ROWS, dtype=torch.float32, device=z.device) for _ in range(2)]
    for running in found:
        for begin in (0, 6144, 12288, 18432):  # as tiles that stay in the L2 cache
            tile = z[:, begin : begin + 6144]
            TritonEpilogue().statistics(tile, labels - begin, 1.25, running)
    assert torch.equal(*found)
    for rows in torch.arange(ROWS, device="cuda").split(PART):
        exact = exact_statistics(z[rows].double() * 1.25, labels[rows])
        for ours, theirs in zip(combine(found[0][None, :, rows].double()), combine(exact[None]), strict=True):
            assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("dtype", "out", "tolerance"),
    [
        (torch.float32, torch.bfloat16, 3e-3),
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.bfloat16, 3e-3),
    ],
    ids=["fp32_to_bf16", "fp32_to_fp32", "bf16_to_bf16"],
)
def test_gradient_at_full_size(dtype: torch.dtype, out: torch.dtype, tolerance: float) -> None:
    z, labels = real_logits(dtype), some_labels(ROWS, COLUMNS, "cuda")
    gradients = upstream(ROWS, entropy=True, lse=True, device="cuda")
    parts = [row_gradients(part, 1.25, [None] * 3) for part in z.split(PART)]
    rows = row_gradients(z[:1], 1.25, gradients)
    rows = type(rows)(torch.cat([p.lse for p in parts]), torch.cat([p.mean for p in parts]), *gradients)
    found, again = (TritonEpilogue().gradient(z.clone(), labels, 1.25, rows, out) for _ in range(2))
    assert torch.equal(found, again)
    for part in torch.arange(ROWS, device="cuda").split(PART):
        exact = exact_gradient(z[part], labels[part], 1.25, [g[part] for g in gradients])
        assert (found[part].double() - exact).norm() / exact.norm() <= tolerance
    assert (found[1] == 0).all()


def test_offsets_beyond_31_bits() -> None:
    """16384 x 152064 fp32 logits (9.3 GiB): the last rows are where they should be."""
    z = torch.zeros(16384, 152064, device="cuda")
    z[-8:].normal_(generator=torch.Generator("cuda").manual_seed(0))
    labels = some_labels(16384, 152064, "cuda")
    running = empty_statistics(16384, dtype=torch.float32, device=z.device)
    TritonEpilogue().statistics(z, labels, 1.0, running)
    expected = exact_statistics(z[-8:].double(), labels[-8:])
    for ours, exact in zip(combine(running[None, :, -8:].double()), combine(expected[None]), strict=True):
        assert (ours - exact).abs().max() <= 1e-5
    gradients = upstream(16384, entropy=True, lse=True, device="cuda")
    exact = exact_gradient(z[-8:], labels[-8:], 1.0, [g[-8:] for g in gradients])
    lse, mean = (torch.full((16384,), float(value), device="cuda") for value in (running[1, 0].log(), 0.0))
    rows = row_gradients(z[-8:], 1.0, gradients)
    lse[-8:], mean[-8:] = rows.lse, rows.mean
    found = TritonEpilogue().gradient(z, labels, 1.0, type(rows)(lse, mean, *gradients), torch.bfloat16)
    assert (found[-8:].double() - exact).norm() / exact.norm() <= 3e-3


def test_a_new_shape_does_not_compile_anew() -> None:
    def compiled() -> int:
        return sum(len(kernel.device_caches[device][0]) for kernel in kernels)

    kernels, device = (triton_kernels.statistics, triton_kernels.gradient), torch.cuda.current_device()
    counts = []
    for n, v in ((1, 16), (16, 1), (7, 4096), (64, 1003)):
        z = torch.randn(n, 4096, device="cuda")[:, :v]
        labels = torch.zeros(n, dtype=torch.int64, device="cuda")
        TritonEpilogue().statistics(
            z, labels, 1.0 if n == 1 else 0.7, empty_statistics(n, dtype=z.dtype, device=z.device)
        )
        rows = row_gradients(z, 1.0, [torch.ones(n, device="cuda"), None, None])
        TritonEpilogue().gradient(z, labels, 1.0, rows, torch.bfloat16)
        counts.append(compiled())
    assert counts[0] == counts[-1]
