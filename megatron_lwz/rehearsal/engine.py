"""Transformer Engine without a GPU: its real Python over a stand-in for its compiled extension.

Transformer Engine's layers, attention, optimizer and Megatron's wrappers run as they are. Functions of the extension
check that they get tensors of the device and return tensors of the right shapes; those that no layer of ours needs
raise when they are called. bf16 without fp8, without context parallelism.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from megatron_lwz.rehearsal.device import RehearsalError
from megatron_lwz.rehearsal.ledger import Ledger

EXTENSION = "transformer_engine_torch"
_DOT_PRODUCT = "transformer_engine.pytorch.attention.dot_product_attention"
_ONNX = "transformer_engine.pytorch.onnx_extensions"
"""A module that needs packages for the export to ONNX; no layer calls it."""
_ledger: Ledger | None = None


class DType(enum.IntEnum):
    """The extension's names of dtypes."""

    kByte = 0
    kInt16 = 1
    kInt32 = 2
    kInt64 = 3
    kFloat32 = 4
    kFloat16 = 5
    kBFloat16 = 6
    kFloat8E4M3 = 7
    kFloat8E5M2 = 8
    kFloat8E8M0 = 9
    kFloat4E2M1 = 10


class _Attention(enum.IntEnum):
    """The extension's kernels of fused attention. Ours is always the one for bf16 and any length."""

    NVTE_No_Backend = -1
    NVTE_F16_max512_seqlen = 0
    NVTE_F16_arbitrary_seqlen = 1
    NVTE_FP8 = 2


_DTYPES = {DType.kFloat32: torch.float32, DType.kFloat16: torch.float16, DType.kBFloat16: torch.bfloat16}


class _Name(type):
    """A name of the extension that has no stand-in: it has members and can be compared, but not called."""

    def __getattr__(cls, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        member = _Name(name, (), {"path": f"{cls.path}.{name}"})
        setattr(cls, name, member)
        return member

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise RehearsalError(f"{cls.path} of Transformer Engine has no stand-in")


class _Extension(ModuleType):
    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Name(name, (), {"path": name})
        setattr(self, name, made)
        return made


def install(folder: Path) -> None:
    """Makes `import transformer_engine` take its Python from `folder`, and its extension from here.

    The environment must have NVTE_PROJECT_BUILDING=1, so that it loads no library of CUDA.
    """
    sys.path.insert(0, str(folder))
    extension: Any = _Extension(EXTENSION)
    extension.__spec__ = ModuleSpec(EXTENSION, None)
    extension.DType = DType
    for name, function in _FUNCTIONS.items():
        setattr(extension, name, _counted(name, function))
    for name, value in _ANSWERS.items():
        setattr(extension, name, lambda *_, value=value, **__: value)
    extension.NVTE_Fused_Attn_Backend = _Attention
    sys.modules |= {EXTENSION: extension, _ONNX: _Extension(_ONNX)}
    common: Any = importlib.import_module("transformer_engine.common")
    common.load_framework_extension = lambda _: None
    functions: Any = importlib.import_module("transformer_engine.pytorch.cpp_extensions")
    functions.__getattr__ = extension.__getattr__  # its `import *` took only what the stand-in had by then
    _take_fakes_for_tensors(importlib.import_module(f"{_DOT_PRODUCT}.utils"))


def _take_fakes_for_tensors(utils: Any) -> None:
    """Fused attention is chosen for the type torch.Tensor itself, and FakeTensor is a class derived from it."""
    choose = utils.get_attention_backend
    utils.get_attention_backend = lambda params: choose(dataclasses.replace(params, qkv_type=Tensor))


def count_into(ledger: Ledger) -> None:
    """Makes the ledger the one that counts calls of the extension."""
    global _ledger
    _ledger = ledger


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if _ledger is not None:
            _ledger.launches[f"transformer_engine.{name}"] += 1
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, Tensor) and not (isinstance(tensor, FakeTensor) and tensor.is_cuda):
                    raise RehearsalError(f"{name} of Transformer Engine: a host tensor {tuple(tensor.shape)}")
        return function(*args, **kwargs)

    return call


def _rmsnorm_fwd(
    x: Tensor, weight: Tensor, _eps: float, out: Tensor | None, _quantizer: Any, dtype: DType, *_: Any
) -> tuple[Tensor, None, Tensor]:
    if x.shape[-1] != weight.shape[0]:
        raise RehearsalError(f"rmsnorm_fwd: {tuple(x.shape)} with a weight {tuple(weight.shape)}")
    made = torch.empty_like(x, dtype=_DTYPES[dtype]) if out is None else out
    return made, None, x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)


def _rmsnorm_bwd(gradient: Tensor, x: Tensor, _scales: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    if gradient.numel() != x.numel():
        raise RehearsalError(f"rmsnorm_bwd: a gradient {tuple(gradient.shape)} of {tuple(x.shape)}")
    return torch.empty_like(x), torch.empty_like(weight)


def _generic_gemm(  # noqa: PLR0913 (the extension's signature)
    a: Tensor, a_turned: bool, b: Tensor, b_turned: bool, out: Tensor | None, _quantizer: Any, dtype: DType | None,
    bias: Tensor | None, bias_dtype: DType, _gelu: bool, _gelu_in: Any, backward: bool, *_: Any, **__: Any
) -> tuple[Tensor, Tensor | None, None, None]:  # fmt: skip
    """out = op(b) · op(a), each [rows, columns] with its first dimensions flattened."""
    if a.dtype != b.dtype:
        raise RehearsalError(f"generic_gemm: a product of {b.dtype} and {a.dtype}")
    (a_rows, a_columns), (b_rows, b_columns) = ((t.numel() // t.shape[-1], t.shape[-1]) for t in (a, b))
    rows, inner = (b_columns, b_rows) if b_turned else (b_rows, b_columns)
    other, columns = (a_columns, a_rows) if a_turned else (a_rows, a_columns)
    if inner != other:
        raise RehearsalError(f"generic_gemm: {tuple(b.shape)} with {tuple(a.shape)}")
    shape = (rows, columns) if b_turned else (*b.shape[:-1], columns)
    if out is None:
        out = b.new_empty(shape, dtype=b.dtype if dtype is None else _DTYPES[dtype])
    elif out.numel() != rows * columns:
        raise RehearsalError(f"generic_gemm: an output {tuple(out.shape)} for {shape}")
    bias_gradient = None
    if backward and bias is not None:
        bias_gradient = b.new_empty(bias.shape, dtype=_DTYPES[bias_dtype])
    return out, bias_gradient, None, None


def _fused_attn_fwd(*args: Any) -> list[Tensor]:
    query, key, value = args[13:16]
    _check_heads(query, key, value)
    softmax = query.new_empty(query.shape[0], query.shape[1], 1, dtype=torch.float32)
    return [query.new_empty(*query.shape[:-1], value.shape[-1]), softmax, query.new_empty(2, dtype=torch.int64)]


def _fused_attn_bwd(*args: Any) -> list[Tensor | None]:
    query, key, value, out, gradient = args[13:18]
    _check_heads(query, key, value)
    if out.shape != gradient.shape:
        raise RehearsalError(f"fused_attn_bwd: a gradient {tuple(gradient.shape)} of {tuple(out.shape)}")
    return [*(torch.empty_like(tensor) for tensor in (query, key, value)), None, None]


def _check_heads(query: Tensor, key: Tensor, value: Tensor) -> None:
    if (
        len({query.dtype, key.dtype, value.dtype}) > 1
        or query.shape[-1] != key.shape[-1]
        or query.shape[-2] % key.shape[-2]
    ):
        raise RehearsalError(f"fused attention of {[(tuple(t.shape), t.dtype) for t in (query, key, value)]}")


def _fused_rope(x: Tensor, angles: Tensor, *_: Any) -> Tensor:
    if angles.dtype != torch.float32 or angles.shape[-1] > x.shape[-1]:
        raise RehearsalError(f"fused_rope: angles {tuple(angles.shape)} {angles.dtype} for {tuple(x.shape)}")
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _multi_tensor_l2norm(
    _chunk: int, flag: Tensor, lists: Sequence[Sequence[Tensor]], each: bool
) -> tuple[Tensor, Tensor]:
    count = len(lists[0]) if each else 0
    return flag.new_empty(1, dtype=torch.float32), flag.new_empty(count, dtype=torch.float32)


def _multi_tensor(_chunk: int, _flag: Tensor, lists: Sequence[Sequence[Tensor]], *_: Any) -> None:
    """Updates lists of tensors in place, as the scaling of gradients and Adam do."""
    for together in zip(*lists, strict=True):
        if len({tensor.numel() for tensor in together}) > 1:
            raise RehearsalError(f"multi_tensor: {[tuple(tensor.shape) for tensor in together]}")


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "rmsnorm_fwd": _rmsnorm_fwd,
    "rmsnorm_bwd": _rmsnorm_bwd,
    "generic_gemm": _generic_gemm,
    "fused_attn_fwd": _fused_attn_fwd,
    "fused_attn_bwd": _fused_attn_bwd,
    "fused_rope_forward": _fused_rope,
    "fused_rope_backward": _fused_rope,
    "multi_tensor_l2norm": _multi_tensor_l2norm,
    "multi_tensor_scale": _multi_tensor,
    "multi_tensor_adam": _multi_tensor,
}
_ANSWERS = {
    "get_cublasLt_version": 130000,
    "get_cudnn_version": 91900,
    "get_num_cublas_streams": 4,
    "get_fused_attn_backend": _Attention.NVTE_F16_arbitrary_seqlen,
    "get_stream_priority_range": (0, -5),
    "ubuf_built_with_mpi": False,
    "device_supports_multicast": False,
}
