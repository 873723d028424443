"""The epilogue in C++ (csrc/cpu): AVX2 where the processor has it, plain vector code elsewhere, on torch's own threads.

One read of the tile for the statistics, one read and one write for the gradient, with e^x as a polynomial (relative
error below 2e-7) and sums over columns in double precision. A row is computed in one order by one thread, so results
are bitwise equal from run to run and for any number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_lwz.errors import ConfigError
from megatron_lwz.kernels.linear_logprob.epilogue import RowGradients
from megatron_lwz.kernels.linear_logprob.plain import TorchEpilogue

_reason: str | None = None
try:
    from megatron_lwz.kernels import _cpu
except ImportError as error:
    _reason = f"the C++ kernels are not built: install a C++ compiler, then the package once more ({error})"

_FORMATS = (torch.float32, torch.bfloat16)


def available() -> str | None:
    """Returns None when the epilogue can run here, else the reason in one line."""
    return _reason


class CppEpilogue:
    """An `epilogue.Epilogue` in C++. fp64 logits, the tests' oracle, use `TorchEpilogue`."""

    def __init__(self) -> None:
        if _reason is not None:
            raise ConfigError("kernels.backend", "cpp", f"cannot run here ({_reason})")
        self._torch = TorchEpilogue()

    def statistics(self, z: Tensor, labels: Tensor, scale: float, running: Tensor) -> None:
        """Merges the tile (fp32 or bf16) into `running` [4, n] fp32 contiguous, in place."""
        if z.dtype not in _FORMATS:
            return self._torch.statistics(z, labels, scale, running)
        _check(z, labels)
        assert running.dtype == torch.float32 and running.is_contiguous() and running.shape == (4, len(z))
        _cpu.statistics(z, labels.contiguous(), scale, running, torch.get_num_threads())

    def gradient(self, z: Tensor, labels: Tensor, scale: float, rows: RowGradients, dtype: torch.dtype) -> Tensor:
        """Returns dL/dz [n, v] in the memory of z (its row stride is kept), or in new memory for fp32 of bf16."""
        if z.dtype not in _FORMATS or dtype not in _FORMATS:
            return self._torch.gradient(z, labels, scale, rows, dtype)
        _check(z, labels)
        if dtype.itemsize > z.dtype.itemsize:
            out = torch.empty_like(z, dtype=dtype, memory_format=torch.contiguous_format)
        else:  # the first bytes of each row: narrow results are written behind the logits still to be read
            out = z.view(dtype)[:, : z.shape[1]]
        _cpu.gradient(z, out, labels.contiguous(), scale, _contiguous(rows), torch.get_num_threads())
        return out


def _check(z: Tensor, labels: Tensor) -> None:
    """Checks the tensors, because C++ sees only their addresses."""
    if z.device.type != "cpu":
        raise ConfigError("kernels.backend", "cpp", f"runs on a CPU, not on {z.device}: choose auto")
    assert z.ndim == 2 and z.stride(1) == 1, "rows of a tile are contiguous"
    assert labels.dtype == torch.int64 and labels.shape == (len(z),) and not labels.is_cuda


def _contiguous(rows: RowGradients) -> RowGradients:
    vectors = (rows.lse, rows.mean, rows.logprob, rows.entropy, rows.lse_gradient)
    assert all(v is None or v.dtype == torch.float32 for v in vectors)
    lse, mean, logprob = (v.contiguous() for v in vectors[:3])
    entropy, lse_gradient = (None if v is None else v.contiguous() for v in vectors[3:])
    return RowGradients(lse, mean, logprob, entropy, lse_gradient)
