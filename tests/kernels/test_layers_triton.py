"""What the layer ops in Triton become on an H200. (Their numbers: test_interpreted.)"""

from __future__ import annotations

from typing import Any

import pytest

from megatron_lwz.kernels.layers import triton_kernels as kernels
from megatron_lwz.kernels.layers.triton import backward_block, rotation_sizes, rotation_warps
from tests.kernels.ahead_of_time import compile_ahead_of_time

NORM = dict.fromkeys(("x", "weight", "out", "gradient", "x_gradient"), "*bf16") | {
    "scales": "*fp32",
    "partial": "*fp32",
    "eps": "fp32",
    "rows": "i32",
}
ROTATE = dict.fromkeys(("query", "key", "query_out", "key_out"), "*bf16") | {"cos": "*fp32", "sin": "*fp32"}
ROTATE |= dict.fromkeys(("tokens", "query_stride", "query_head_stride", "key_stride", "key_head_stride"), "i32")
SWIGLU = dict.fromkeys(("x", "out", "gradient", "x_gradient"), "*bf16")


def _norm_backward(width: int) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    block, warps = backward_block(width)
    return kernels.rms_norm_backward, NORM, {"WIDTH": width, "BLOCK": block}, warps


def _rotation(queries: int, keys: int, half: int, *, back: bool) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    sizes = rotation_sizes(queries, keys, half)
    return kernels.rotate_heads, ROTATE, sizes | {"BACK": back}, rotation_warps(sizes)


KERNELS = {
    "rms_norm_forward_0.5b": (kernels.rms_norm_forward, NORM, {"WIDTH": 896, "BLOCK": 1024}, 4),
    "rms_norm_forward_72b": (kernels.rms_norm_forward, NORM, {"WIDTH": 8192, "BLOCK": 8192}, 16),
    "rms_norm_backward_0.5b": _norm_backward(896),
    "rms_norm_backward_7b": _norm_backward(3584),
    "rms_norm_backward_72b": _norm_backward(8192),
    "rotate_0.5b": _rotation(14, 2, 32, back=False),
    "rotate_7b_back": _rotation(28, 4, 64, back=True),
    "rotate_72b": _rotation(64, 8, 64, back=False),
    "swiglu_forward": (kernels.swiglu_forward, SWIGLU, {"WIDTH": 18944, "BLOCK": 1024}, 4),
    "swiglu_backward": (kernels.swiglu_backward, SWIGLU, {"WIDTH": 18944, "BLOCK": 1024}, 4),
}
"""Function, types, constants and warps, for the shapes of published sizes (bf16, one tensor-parallel rank)."""


@pytest.mark.parametrize("name", KERNELS)
def test_nothing_spills_on_an_h200(name: str) -> None:
    function, types, constants, warps = KERNELS[name]
    code = compile_ahead_of_time(function, types, constants, num_warps=warps)
    assert code.local_bytes == 0 and not code.count(r"\b(LDL|STL)\b")
    assert code.registers <= 128
