"""The epilogue as Triton kernels: one launch per pass over a tile, statistics merged and gradients written in place."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from megatron_lwz.kernels.linear_logprob.epilogue import RowGradients
from megatron_lwz.kernels.linear_logprob.plain import TorchEpilogue

_INSTALLED = importlib.util.find_spec("triton") is not None
if _INSTALLED:
    import triton

    from megatron_lwz.kernels.linear_logprob import triton_kernels as kernels

LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}
BLOCK = 2048
"""Columns per step, 16 per thread: each thread has four 128-bit loads of fp32 in flight."""
_THREADS = 128
_VECTOR_BYTES = 16
"""Bytes of the widest load of a thread."""


def available() -> str | None:
    """Returns None where the kernels can run: on a GPU or, for tests on small shapes, in Triton's interpreter.

    Otherwise returns the reason in one line.
    """
    if not _INSTALLED:
        return "Triton is not installed"
    if not interpreted() and not torch.cuda.is_available():
        return "there is no GPU"
    return None


def interpreted() -> bool:
    """Whether the kernels run through Triton's interpreter (TRITON_INTERPRET=1 when Triton was imported)."""
    return not isinstance(kernels.statistics, triton.JITFunction)


class TritonEpilogue:
    """An `epilogue.Epilogue` in Triton, for tiles of fp32 and bf16; fp64 runs in plain torch.

    Fastest where every row starts at a multiple of 16 bytes; others are moved one element per thread and instruction.
    """

    def __init__(self) -> None:
        self._fp64 = TorchEpilogue()

    def statistics(self, z: Tensor, labels: Tensor, scale: float, running: Tensor) -> None:
        """Merges the tile into `running` [4, n] fp32 (contiguous), in place."""
        if z.dtype == torch.float64:
            return self._fp64.statistics(z, labels, scale, running)
        assert running.is_contiguous() and running.dtype == torch.float32
        kernels.statistics[(z.shape[0],)](
            z,
            z.stride(0),
            z.shape[1],
            labels.contiguous(),
            float(scale),
            running,
            z.shape[0],
            **statistics_constants(z.dtype, aligned=_is_aligned(z)),
            **LAUNCH,
        )

    def gradient(self, z: Tensor, labels: Tensor, scale: float, rows: RowGradients, dtype: torch.dtype) -> Tensor:
        """Returns dL/dz [n, v] in `dtype`, in the memory of z wherever it fits.

        The bf16 gradient of fp32 logits uses the first half of each row's memory: its row stride is 2 · z.stride(0).
        """
        if z.dtype == torch.float64:
            return self._fp64.gradient(z, labels, scale, rows, dtype)
        out = _in_memory_of(z, dtype)
        kernels.gradient[(z.shape[0],)](
            z,
            out,
            z.stride(0),
            out.stride(0),
            z.shape[1],
            labels.contiguous(),
            float(scale),
            rows.lse.contiguous(),
            rows.mean.contiguous(),
            rows.logprob.contiguous(),
            None if rows.entropy is None else rows.entropy.contiguous(),
            None if rows.lse_gradient is None else rows.lse_gradient.contiguous(),
            **gradient_constants(z.dtype, dtype, aligned=_is_aligned(z) and _is_aligned(out)),
            **LAUNCH,
        )
        return out


def statistics_constants(dtype: torch.dtype, *, aligned: bool) -> dict[str, int]:
    """Returns the compile-time constants of `statistics`."""
    vector = _VECTOR_BYTES // dtype.itemsize if aligned else 1
    return {"ALIGNED": aligned, "LANES": _THREADS, "VECTOR": vector, "STEPS": BLOCK // (_THREADS * vector)}


def gradient_constants(dtype: torch.dtype, out: torch.dtype, *, aligned: bool) -> dict[str, int]:
    """Returns the compile-time constants of `gradient`."""
    return {"ALIGNED": aligned, "SHRINKS": out.itemsize < dtype.itemsize, "BLOCK": BLOCK}


def _is_aligned(tile: Tensor) -> bool:
    """Whether every row starts at a multiple of the widest load."""
    return tile.data_ptr() % _VECTOR_BYTES == 0 and tile.stride(0) * tile.element_size() % _VECTOR_BYTES == 0


def _in_memory_of(z: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns memory for a tile of `dtype`: z itself, the first half of each of its rows, or new memory if wider."""
    if dtype.itemsize > z.element_size():
        return torch.empty(z.shape, dtype=dtype, device=z.device)
    return z.view(dtype)[:, : z.shape[1]]
