"""The functions of Transformer Engine's extension that a step of ours calls, on shapes: what each takes and returns.

Its C++ reads tensors by their address and their sizes. What it would misread is refused here: other dtypes, shapes, and
strides where it takes none. bf16 without fp8.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_lwz.rehearsal.ledger import RehearsalError


class DType(enum.IntEnum):
    """The extension's names of dtypes: those that it gives to Python."""

    kByte = 0
    kInt32 = 2
    kFloat32 = 4
    kFloat16 = 5
    kBFloat16 = 6
    kFloat8E4M3 = 7
    kFloat8E5M2 = 8
    kFloat4E2M1 = 10


_DTYPES = {DType.kFloat32: torch.float32, DType.kFloat16: torch.float16, DType.kBFloat16: torch.bfloat16}


def _rmsnorm_fwd(
    x: Tensor, weight: Tensor, _eps: float, out: Tensor | None, _quantizer: Any, dtype: DType, *_: Any
) -> tuple[Tensor, None, Tensor]:
    _contiguous("rmsnorm_fwd", x, weight, out)
    if x.shape[-1] != weight.shape[0]:
        raise RehearsalError(f"rmsnorm_fwd: {tuple(x.shape)} with a weight {tuple(weight.shape)}")
    made = torch.empty_like(x, dtype=_DTYPES[dtype]) if out is None else out
    return made, None, x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)


def _rmsnorm_bwd(gradient: Tensor, x: Tensor, scales: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    _contiguous("rmsnorm_bwd", gradient, x, scales, weight)
    if gradient.numel() != x.numel():
        raise RehearsalError(f"rmsnorm_bwd: a gradient {tuple(gradient.shape)} of {tuple(x.shape)}")
    return torch.empty_like(x), torch.empty_like(weight)


def _generic_gemm(  # noqa: PLR0913 (the extension's signature)
    a: Tensor, a_turned: bool, b: Tensor, b_turned: bool, out: Tensor | None, _quantizer: Any, dtype: DType | None,
    bias: Tensor | None, bias_dtype: DType, _gelu: bool, _gelu_in: Any, backward: bool, *_: Any, **__: Any
) -> tuple[Tensor, Tensor | None, None, None]:  # fmt: skip
    """out = op(b) · op(a), each [rows, columns] with its first dimensions flattened."""
    _contiguous("generic_gemm", a, b, out, bias)
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
    layout, (starts, other_starts, query, key, value) = _layout_and_tensors(args, 5)
    _check_attention("fused_attn_fwd", layout, (starts, other_starts), (query, key, value))
    softmax = query.new_empty(query.shape[0], query.shape[1], 1, dtype=torch.float32)
    return [query.new_empty(*query.shape[:-1], value.shape[-1]), softmax, query.new_empty(2, dtype=torch.int64)]


def _fused_attn_bwd(*args: Any) -> list[Tensor | None]:
    layout, (starts, other_starts, query, key, value, out, gradient) = _layout_and_tensors(args, 7)
    _check_attention("fused_attn_bwd", layout, (starts, other_starts), (query, key, value))
    _contiguous("fused_attn_bwd", out, gradient)
    if out.shape != gradient.shape or out.dtype != gradient.dtype:
        raise RehearsalError(f"fused_attn_bwd: a gradient {_said(gradient)} of {_said(out)}")
    return [*(torch.empty_like(tensor) for tensor in (query, key, value)), None, None]


def _layout_and_tensors(args: Sequence[Any], count: int) -> tuple[Any, list[Tensor]]:
    """Returns the layout of query, key and value, and the first `count` tensors: releases differ in what lies between."""
    layout = args[_place_of("NVTE_QKV_Layout", args)]
    return layout, [value for value in args if isinstance(value, Tensor)][:count]


def _place_of(enumeration: str, args: Sequence[Any]) -> int:
    """Returns the place of the first argument that is a member of the extension's enumeration."""
    return next(place for place, value in enumerate(args) if getattr(value, "path", "").startswith(f"{enumeration}."))


def _check_attention(name: str, layout: Any, starts: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """The layout names tensors by themselves (`THD_THD_THD`), which have no strides, or parts of one (`T3HD`)."""
    query, key, value = tensors
    if len({t.dtype for t in tensors}) > 1 or query.shape[-1] != key.shape[-1] or query.shape[-2] % key.shape[-2]:
        raise RehearsalError(f"{name}: {[_said(tensor) for tensor in tensors]}")
    if key.shape[:-1] != value.shape[:-1] or query.dtype not in (torch.bfloat16, torch.float16):
        raise RehearsalError(f"{name}: {[_said(tensor) for tensor in tensors]}")
    for tensor in starts:
        if tensor.dtype != torch.int32 or tensor.dim() != 1 or tensor.shape != starts[0].shape:
            raise RehearsalError(f"{name}: positions of segments {_said(tensor)} must be int32, as many for all")
    _contiguous(name, *starts)
    if len(layout.path.rpartition("NVTE_")[2].split("_")) == len(tensors):
        _contiguous(name, *tensors)


def _fused_rope(x: Tensor, angles: Tensor, *args: Any) -> Tensor:
    """Takes any strides of x. 2.9 gives no first positions to the backward pass."""
    layout, _interleaved, starts, *_ = args[_place_of("NVTE_QKV_Format", args) :]
    if angles.dtype != torch.float32 or angles.shape[-1] > x.shape[-1]:
        raise RehearsalError(f"fused_rope: angles {_said(angles)} for {_said(x)}")
    if layout.path.endswith("THD") and (starts is None or starts.dtype != torch.int32 or x.dim() != 3):
        raise RehearsalError(f"fused_rope: a pack {_said(x)} with positions of segments {_said(starts)}")
    _contiguous("fused_rope", angles, starts)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _thd_read_half(x: Tensor, starts: Tensor, _half: int) -> Tensor:
    """Returns the first or second half of each segment of x [.., T, heads, width]."""
    _check_pack("thd_read_half_tensor", starts, x)
    shape = list(x.shape)
    shape[-3] //= 2
    return x.new_empty(shape)


def _thd_read_second_half_lse(lse: Tensor, starts: Tensor, packed: bool, length: int) -> Tensor:
    _check_lse("thd_read_second_half_lse", starts, packed, lse)
    return lse.new_empty(*lse.shape[:-1], length)


def _thd_second_half_lse_correction(lse: Tensor, step: Tensor, starts: Tensor, packed: bool) -> None:
    _check_lse("thd_second_half_lse_correction", starts, packed, lse, step)
    if lse.shape[-1] != 2 * step.shape[-1]:
        raise RehearsalError(f"thd_second_half_lse_correction: {_said(step)} is not half of {_said(lse)}")


def _thd_out_correction(out: Tensor, step: Tensor, *args: Any) -> None:
    """Takes log-sum-exps (newer releases one more), where segments begin, whether only second halves, and the form."""
    *lses, starts, only_second, packed = args
    _check_pack("thd_out_correction", starts, out, step)
    _check_lse("thd_out_correction", starts, packed, *lses)
    if out.dtype != step.dtype or out.shape[0] != step.shape[0] * (2 if only_second else 1):
        raise RehearsalError(f"thd_out_correction: {_said(step)} for {_said(out)}")


def _thd_grad_correction(gradient: Tensor, step: Tensor, starts: Tensor, first: str, second: str) -> None:
    _check_pack("thd_grad_correction", starts, gradient, step)
    halves = 2 if "none" in (first, second) else 1
    if gradient.dtype != step.dtype or gradient.shape[-3] != halves * step.shape[-3]:
        raise RehearsalError(f"thd_grad_correction: {_said(step)} for {_said(gradient)}, {first} and {second}")


def _check_pack(name: str, starts: Tensor, *tensors: Tensor) -> None:
    _contiguous(name, starts, *tensors)
    if starts.dtype != torch.int32 or any(tensor.dim() not in (3, 4) for tensor in tensors):
        raise RehearsalError(f"{name}: {[_said(tensor) for tensor in (starts, *tensors)]}")


def _check_lse(name: str, starts: Tensor, packed: bool, *tensors: Tensor) -> None:
    """Log-sum-exp: [heads, T] of packs, else [segments, heads, longest]."""
    _contiguous(name, starts, *tensors)
    if any(tensor.dtype != torch.float32 or tensor.dim() != (2 if packed else 3) for tensor in tensors):
        raise RehearsalError(f"{name}: {[_said(tensor) for tensor in tensors]}")


def _multi_tensor_l2norm(
    _chunk: int, flag: Tensor, lists: Sequence[Sequence[Tensor]], each: bool
) -> tuple[Tensor, Tensor]:
    _contiguous("multi_tensor_l2norm", *lists[0])
    count = len(lists[0]) if each else 0
    return flag.new_empty(1, dtype=torch.float32), flag.new_empty(count, dtype=torch.float32)


def _multi_tensor(_chunk: int, _flag: Tensor, lists: Sequence[Sequence[Tensor]], *_: Any) -> None:
    """Updates lists of tensors in place, as the scaling of gradients and Adam do."""
    for together in zip(*lists, strict=True):
        if len({tensor.numel() for tensor in together}) > 1:
            raise RehearsalError(f"multi_tensor: {[_said(tensor) for tensor in together]}")
        _contiguous("multi_tensor", *together)


def _contiguous(name: str, *tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None and not tensor.is_contiguous():
            raise RehearsalError(f"{name} of Transformer Engine: {_said(tensor)} must be contiguous")


def _said(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}, strides {tensor.stride()}"


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "rmsnorm_fwd": _rmsnorm_fwd,
    "rmsnorm_bwd": _rmsnorm_bwd,
    "generic_gemm": _generic_gemm,
    "fused_attn_fwd": _fused_attn_fwd,
    "fused_attn_bwd": _fused_attn_bwd,
    "fused_rope_forward": _fused_rope,
    "fused_rope_backward": _fused_rope,
    "thd_read_half_tensor": _thd_read_half,
    "thd_read_second_half_lse": _thd_read_second_half_lse,
    "thd_second_half_lse_correction": _thd_second_half_lse_correction,
    "thd_out_correction": _thd_out_correction,
    "thd_grad_correction": _thd_grad_correction,
    "multi_tensor_l2norm": _multi_tensor_l2norm,
    "multi_tensor_scale": _multi_tensor,
    "multi_tensor_scale_tensor": _multi_tensor,
    "multi_tensor_adam": _multi_tensor,
}
ANSWERS: dict[str, Any] = {
    "get_cublasLt_version": 130000,
    "get_cudnn_version": 91900,
    "get_num_cublas_streams": 4,
    "get_stream_priority_range": (0, -5),
    "ubuf_built_with_mpi": False,
    "device_supports_multicast": False,
}
