"""What the CUDA epilogue must do, checked on a GPU (tests/gpu) and on the CPU's imitation of one (test_cuda_build)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_lwz.kernels.linear_logprob.cuda import CudaEpilogue
from megatron_lwz.kernels.linear_logprob.epilogue import Epilogue, RowGradients, combine, empty_statistics

DTYPES = [torch.float32, torch.bfloat16]
PAIRS = [(z, gradient) for z in DTYPES for gradient in DTYPES]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-3}
"""Of gradients, relative; log-probs have 1e-5 absolute whatever the logits are stored in, being compared with the same logits."""
TEMPERATURE = 0.7


@dataclass(frozen=True)
class Case:
    """Logits z [n, v], a column slice of a wider buffer; the last row's label lies in another shard."""

    z: Tensor
    labels: Tensor
    scale: float = 1 / TEMPERATURE

    def copy(self) -> Case:
        """The same in memory of its own, strides and alignment kept: a gradient overwrites its logits."""
        start, span = self.z.storage_offset() % 8, (len(self.z) - 1) * self.z.stride(0) + self.z.shape[1]
        buffer = torch.empty(start + span, dtype=self.z.dtype, device=self.z.device)[start:]
        return replace(self, z=buffer.as_strided(self.z.shape, self.z.stride()).copy_(self.z))


def make(
    *, rows: int, columns: int, dtype: torch.dtype, device: str = "cpu", offset: int = 0, shift: float = 0.0
) -> Case:
    """Logits of spread 4, rows `offset` elements off alignment.

    Labels: the last column in the first row, one that takes most of the softmax in the second, another shard's in the last.
    """
    generator = torch.Generator().manual_seed(columns)
    width = -(-columns // 8) * 8 + 16
    buffer = torch.randn(rows, width, generator=generator, dtype=torch.float64) * 4 + shift
    labels = torch.randint(0, columns, (rows,), generator=generator)
    labels[0], labels[-1] = columns - 1, labels[-1] if rows == 1 else columns + 3
    start = 8 + offset
    if rows > 1:
        buffer[1, start + labels[1]] += 15
    return Case(buffer.to(dtype).to(device)[:, start : start + columns], labels.to(device))


def statistics(epilogue: Epilogue, case: Case, *, tile: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logprob, entropy, lse, mean from tiles `tile` columns wide, left to right."""
    dtype = torch.float64 if case.z.dtype == torch.float64 else torch.float32
    running = empty_statistics(len(case.z), dtype=dtype, device=case.z.device)
    for start in range(0, case.z.shape[1], tile):
        epilogue.statistics(case.z[:, start : start + tile], case.labels - start, case.scale, running)
    return combine(running[None])


def exact(case: Case) -> tuple[Tensor, Tensor]:
    """fp64: y [n, v] and [4, n]: logprob (of the label in the shard, else of a logit 0), entropy, lse, mean."""
    y = case.z.double() * case.scale
    own = case.labels < y.shape[1]
    chosen = y.gather(1, case.labels.clamp(max=y.shape[1] - 1)[:, None])[:, 0] * own
    lse = y.logsumexp(1)
    mean = ((y - lse[:, None]).exp() * y).sum(1)
    return y, torch.stack([chosen - lse, lse - mean, lse, mean])


def check_statistics(epilogue: CudaEpilogue, case: Case, *, tolerance: float = 1e-5) -> None:
    """In one tile and in tiles of an odd width; bitwise repeatable; z left as it is."""
    before = case.z.clone()
    _, expected = exact(case)
    for tile in {case.z.shape[1], 264, 517}:
        found = torch.stack(statistics(epilogue, case, tile=tile))
        assert (found.double() - expected).abs().max() < tolerance, tile
        assert torch.equal(found, torch.stack(statistics(epilogue, case, tile=tile)))
    assert torch.equal(case.z, before)


def check_gradient(epilogue: CudaEpilogue, case: Case, dtype: torch.dtype) -> None:
    """With and without gradients of entropy and lse; bitwise repeatable; nothing written outside the tile."""
    y, (_, _, lse, mean) = exact(case)
    generator = torch.Generator().manual_seed(1)
    g, h, k = torch.randn(3, len(y), generator=generator).to(y.device)
    for entropy, lse_gradient in ((h, k), (None, None), (h, None), (None, k)):
        rows = RowGradients(lse.float(), mean.float(), g, entropy, lse_gradient)
        runs = [case.copy() for _ in range(2)]
        first, second = (epilogue.gradient(run.z, run.labels, run.scale, rows, dtype) for run in runs)
        assert first.dtype == dtype and torch.equal(first, second)
        expected = _gradient(case, y, rows)
        assert (first.double() - expected).norm() / expected.norm() < TOLERANCE[dtype]


def check_idle_rows(epilogue: CudaEpilogue, device: str = "cpu") -> None:
    """Zero gradients write exact zeros, whatever the logits are."""
    z = torch.full((2, 1030), float("nan"), device=device)
    z[1] = 1.0
    labels = torch.tensor([3, 4], device=device)
    g, ones = torch.tensor([0.0, 1.0], device=device), torch.ones(2, device=device)
    rows = RowGradients(ones * 8, ones, g, g.clone(), None)
    gradient = epilogue.gradient(z, labels, 1.0, rows, torch.bfloat16)
    assert not gradient[0].any() and gradient[1].isfinite().all() and gradient[1].any()


def _gradient(case: Case, y: Tensor, rows: RowGradients) -> Tensor:
    """fp64, from the formula in `epilogue`."""
    g, h, k = (0 if r is None else r.double()[:, None] for r in (rows.logprob, rows.entropy, rows.lse_gradient))
    p = y.softmax(1)
    dy = p * (k - g - h * (y - (p * y).sum(1, keepdim=True)))
    own = (case.labels < y.shape[1]).nonzero().squeeze(1)
    dy[own, case.labels[own]] += rows.logprob.double()[own]
    return dy * case.scale
