"""The epilogue in CUDA C++ for Hopper (`kernels/cuda`), through a plain C ABI: needs no headers of torch to build.

On an H200 it takes as long as the Triton kernels (docs/benchmarks/gpu_check.md). `auto` never picks it; `kernels.backend: cuda` does.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from megatron_lwz.kernels.linear_logprob.epilogue import RowGradients
from megatron_lwz.kernels.linear_logprob.plain import TorchEpilogue

_KERNELS = Path(__file__).resolve().parents[1]
LIBRARY = _KERNELS / "_cuda_sm90.so"
SOURCES = _KERNELS / "cuda"
MAIN = "row_epilogue_sm90.cu"
FLAGS = ("-arch=sm_90a", "-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC")
"""No --use_fast_math: e^x, the one hot function, is approximate by name; all else is IEEE arithmetic."""
FUNCTIONS = ("lwz_row_statistics", "lwz_row_gradient", "lwz_error_name")
_HOPPER = (9, 0)


def available() -> str | None:
    """Returns None when the library is built and the device is a Hopper GPU, else the reason in one line."""
    if not torch.cuda.is_available():
        return "there is no GPU"
    if (found := torch.cuda.get_device_capability()) != _HOPPER:
        return f"it is for Hopper (sm_90), this GPU is sm_{found[0]}{found[1]}"
    if not LIBRARY.exists():
        return "it is not built: lwz build-cuda"
    if any(source.stat().st_mtime > LIBRARY.stat().st_mtime for source in SOURCES.glob("*.cu*")):
        return "its sources are newer than what is built: lwz build-cuda"
    return None


def build(*, nvcc: str | None = None, library: Path = LIBRARY) -> Path:
    """Compiles the sources to `library` with `nvcc` (a path; None: the one on PATH). Raises RuntimeError."""
    compiler = nvcc or shutil.which("nvcc")
    if compiler is None:
        raise RuntimeError("nvcc is not on PATH: give its path")
    made = library.with_name(f"{library.name}.new")  # a process that has the old one mapped keeps it
    command = [compiler, *FLAGS, str(SOURCES / MAIN), "-o", str(made)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(f"cannot run {compiler}: {error.strerror}") from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return made.replace(library)


class _Tile(ctypes.Structure):
    """Mirrors `LwzTile` of row_epilogue_sm90.cu."""

    _fields_ = (
        ("z", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("labels", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("is_bf16", ctypes.c_int32),
    )


class _Target(ctypes.Structure):
    """Mirrors `LwzTarget` of row_epilogue_sm90.cu."""

    _fields_ = (("gradient", ctypes.c_void_p), ("stride", ctypes.c_int64), ("is_bf16", ctypes.c_int32))


class CudaEpilogue:
    """An `epilogue.Epilogue` in CUDA, for tiles of fp32 and bf16; fp64 runs in plain torch.

    Fastest where every row starts at a multiple of 16 bytes; others are moved one element per thread and instruction.
    """

    def __init__(self, library: Path = LIBRARY) -> None:
        self._functions = ctypes.CDLL(str(library))
        self._functions.lwz_error_name.restype = ctypes.c_char_p
        self._wide = TorchEpilogue()

    def statistics(self, z: Tensor, labels: Tensor, scale: float, running: Tensor) -> None:
        """Merges the tile into `running` [4, n] fp32 (contiguous), in place."""
        if z.dtype == torch.float64:
            return self._wide.statistics(z, labels, scale, running)
        assert running.is_contiguous() and running.dtype == torch.float32
        labels = labels.contiguous()
        self._call("lwz_row_statistics", z, _tile(z, labels, scale), _pointer(running))

    def gradient(self, z: Tensor, labels: Tensor, scale: float, rows: RowGradients, dtype: torch.dtype) -> Tensor:
        """Returns dL/dz [n, v] in `dtype`, in the memory of z wherever it fits.

        The bf16 gradient of fp32 logits uses the first half of each row's memory: its row stride is 2 · z.stride(0).
        """
        if z.dtype == torch.float64:
            return self._wide.gradient(z, labels, scale, rows, dtype)
        out = _in_memory_of(z, dtype)
        labels = labels.contiguous()
        vectors = _vectors(rows.lse, rows.mean, rows.logprob, rows.entropy, rows.lse_gradient)
        self._call("lwz_row_gradient", z, _tile(z, labels, scale), _target(out), _pointers(vectors))
        return out

    def _call(self, name: str, z: Tensor, *arguments: object) -> None:
        """Launches on the current stream of z's device. Raises RuntimeError with CUDA's name of the error."""
        with _device_of(z):
            stream = torch.cuda.current_stream().cuda_stream if z.is_cuda else None
            code = getattr(self._functions, name)(*arguments, ctypes.c_void_p(stream))
        if code:
            raise RuntimeError(f"{name}: {self._functions.lwz_error_name(code).decode()}")


def _device_of(z: Tensor) -> AbstractContextManager:
    """Selects z's device. CPU tensors are for the GPU imitation that the tests build from the same sources."""
    return torch.cuda.device(z.device) if z.is_cuda else nullcontext()


def _tile(z: Tensor, labels: Tensor, scale: float) -> object:
    """Describes the tile for C. The caller keeps `labels` (contiguous) alive until the launch."""
    assert z.dtype in (torch.float32, torch.bfloat16) and z.stride(1) == 1 and labels.dtype == torch.int64
    bf16 = z.dtype == torch.bfloat16
    return ctypes.byref(_Tile(z.data_ptr(), z.stride(0), *z.shape, labels.data_ptr(), scale, bf16))


def _target(out: Tensor) -> object:
    return ctypes.byref(_Target(out.data_ptr(), out.stride(0), out.dtype == torch.bfloat16))


def _vectors(*values: Tensor | None) -> list[Tensor | None]:
    assert all(value is None or value.dtype == torch.float32 for value in values)
    return [None if value is None else value.contiguous() for value in values]


def _pointers(vectors: list[Tensor | None]) -> ctypes.Array:
    """Returns the vectors' addresses. The caller keeps `vectors` alive until the launch."""
    return (ctypes.c_void_p * len(vectors))(*(None if v is None else v.data_ptr() for v in vectors))


def _pointer(values: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.data_ptr())


def _in_memory_of(z: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns memory for a tile of `dtype`: z itself, the first half of each of its rows, or new memory if wider."""
    if dtype.itemsize > z.element_size():
        return torch.empty(z.shape, dtype=dtype, device=z.device)
    return z.view(dtype)[:, : z.shape[1]]
