"""The CUDA epilogue on a Hopper GPU: what test_cuda_build shows on a CPU, at the sizes that matter."""

from __future__ import annotations

import shutil

import pytest
import torch

from megatron_lwz.kernels.linear_logprob import cuda, linear_logprob
from megatron_lwz.kernels.linear_logprob.epilogue import RowGradients
from megatron_lwz.kernels.settings import using
from tests.support import cuda_epilogue_cases as cases

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def epilogue() -> cuda.CudaEpilogue:
    """Of a library built here and now, or before on a machine that has nvcc."""
    if shutil.which("nvcc"):
        cuda.build()
    if (reason := cuda.available()) is not None:
        pytest.skip(reason)
    return cuda.CudaEpilogue()


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("columns", [1, 1029, 18992, 151936])
def test_statistics_of_tiles_equal_fp64(epilogue: cuda.CudaEpilogue, dtype: torch.dtype, columns: int) -> None:
    cases.check_statistics(epilogue, cases.make(rows=24, columns=columns, dtype=dtype, device="cuda"))


@pytest.mark.parametrize("dtypes", cases.PAIRS, ids=str)
@pytest.mark.parametrize("columns", [1, 1029, 18992, 151936])
def test_gradient_equals_fp64(
    epilogue: cuda.CudaEpilogue, dtypes: tuple[torch.dtype, torch.dtype], columns: int
) -> None:
    case = cases.make(rows=24, columns=columns, dtype=dtypes[0], device="cuda")
    cases.check_gradient(epilogue, case, dtypes[1])


def test_rows_may_start_anywhere(epilogue: cuda.CudaEpilogue) -> None:
    case = cases.make(rows=24, columns=4101, dtype=torch.float32, device="cuda", offset=1)
    cases.check_statistics(epilogue, case)
    cases.check_gradient(epilogue, case, torch.bfloat16)


def test_idle_rows_are_exactly_zero_and_not_read(epilogue: cuda.CudaEpilogue) -> None:
    cases.check_idle_rows(epilogue, "cuda")


def test_more_than_two_to_the_31_logits(epilogue: cuda.CudaEpilogue) -> None:
    rows, columns = 16384, 152064
    z = torch.zeros(rows, columns, dtype=torch.bfloat16, device="cuda")
    z[-1, 7] = 20.0
    case = cases.Case(z, torch.full((rows,), 7, device="cuda"), 1.0)
    logprob, _, _, _ = cases.statistics(epilogue, case, tile=columns)
    expected = torch.zeros(rows, dtype=torch.float64)
    expected -= torch.tensor(float(columns)).double().log()
    expected[-1] = -(1 + (columns - 1) * torch.tensor(-20.0).double().exp()).log()
    torch.testing.assert_close(logprob.double().cpu(), expected, atol=1e-5, rtol=0)


def test_every_launch_gives_the_same_bits(epilogue: cuda.CudaEpilogue) -> None:
    """Many CTAs at once, many times: a race between the reads and writes of the in-place gradient would show."""
    case = cases.make(rows=600, columns=151936, dtype=torch.float32, device="cuda")
    slope = torch.linspace(-1, 1, 600, device="cuda")
    first = None
    for _ in range(10):
        run = case.copy()
        logprob, entropy, lse, mean = cases.statistics(epilogue, run, tile=run.z.shape[1])
        rows = RowGradients(lse, mean, slope, slope, None)
        gradient = epilogue.gradient(run.z, run.labels, run.scale, rows, torch.bfloat16)
        found = torch.cat([logprob, entropy, lse, gradient.float().flatten()])
        assert found.isfinite().all() and (first is None or torch.equal(found, first))
        first = found


def test_op_equals_fp64_through_it(epilogue: cuda.CudaEpilogue) -> None:
    """`kernels.backend: cuda`, with bf16 inputs and a vocabulary of several tiles."""
    torch.manual_seed(0)
    hidden = torch.randn(700, 256, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(20480, 256, device="cuda", dtype=torch.bfloat16) * 0.1
    labels = torch.randint(0, 20000, (700,), device="cuda")
    inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    with using(backend="cuda", workspace_bytes=2**22):
        logprob, entropy, lse = linear_logprob(*inputs, labels, vocab_size=20000)
        found = torch.autograd.grad((logprob + 0.1 * entropy + 0.01 * lse).sum(), inputs)
    leaves = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    y = leaves[0] @ leaves[1][:20000].t()
    exact = y.log_softmax(-1)
    chosen, spread = exact.gather(1, labels[:, None])[:, 0], -(exact.exp() * exact).sum(-1)
    expected = torch.autograd.grad((chosen + 0.1 * spread + 0.01 * y.logsumexp(-1)).sum(), leaves)
    torch.testing.assert_close(logprob.double(), chosen, atol=1e-5, rtol=0)
    for ours, reference in zip(found, expected, strict=True):
        assert (ours.double() - reference).norm() / reference.norm() < 3e-3
