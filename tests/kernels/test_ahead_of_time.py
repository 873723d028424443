"""What the Triton kernels become on an H200 (sm_90): no spills, 128-bit memory access, loops without waiting.

To add a kernel: a row in KERNELS. Limits are what a kernel takes now, so that a change for the worse is seen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
import triton

from megatron_lwz.kernels.layers import triton_kernels as layer_kernels
from megatron_lwz.kernels.layers.triton import backward_block, rotation_sizes, rotation_warps
from megatron_lwz.kernels.linear_logprob import triton_kernels
from megatron_lwz.kernels.linear_logprob.triton import LAUNCH, gradient_constants, statistics_constants
from tests.kernels.ahead_of_time import LOADS_128, STORES_128, MachineCode, compile_ahead_of_time

FP32, BF16 = torch.float32, torch.bfloat16
NAMES = {FP32: "*fp32", BF16: "*bf16"}
RUNNING = {"stride": "i32", "columns": "i32", "labels": "*i64", "scale": "fp32", "running": "*fp32", "rows": "i32"}
ROWS = dict.fromkeys(("lse", "mean", "logprob", "entropy", "lse_gradient"), "*fp32")
TILE = {"stride": "i32", "out_stride": "i32", "columns": "i32", "labels": "*i64", "scale": "fp32"}


@dataclass(frozen=True)
class Kernel:
    """A variant, and the most and the least it may need."""

    function: triton.JITFunction
    types: dict[str, str]
    constants: dict[str, Any]
    registers: int
    loads: int
    """128-bit loads at least."""
    stores: int
    """128-bit stores at least."""
    options: dict[str, Any] = field(default_factory=lambda: LAUNCH)
    """Those of `compile_ahead_of_time`."""


def statistics(dtype: torch.dtype, *, registers: int, loads: int, aligned: bool = True) -> Kernel:
    types = {"z": NAMES[dtype], **RUNNING}
    constants = statistics_constants(dtype, aligned=aligned)
    return Kernel(triton_kernels.statistics, types, constants, registers, loads, stores=0)


def gradient(dtype: torch.dtype, out: torch.dtype, *, registers: int, entropy: bool = True) -> Kernel:
    types = {"z": NAMES[dtype], "out": NAMES[out], **TILE, **ROWS}
    constants = gradient_constants(dtype, out, aligned=True)
    constants |= {} if entropy else {"entropy": None, "lse_gradient": None}
    # Per thread and step 16 columns, once in the loop and once in the masked block; zero rows store as much.
    loads, stores = 2 * dtype.itemsize, 4 * out.itemsize
    return Kernel(triton_kernels.gradient, types, constants, registers, loads, stores)


def norm_backward(width: int, *, registers: int) -> Kernel:
    block, warps = backward_block(width)
    half = dict.fromkeys(("gradient", "x", "weight", "x_gradient"), "*bf16")
    types = {**half, "scales": "*fp32", "partial": "*fp32", "rows": "i32"}
    constants = {"WIDTH": width, "BLOCK": block}
    options = {"num_warps": warps, "aligned": tuple(name for name in types if name != "rows")}
    return Kernel(layer_kernels.rms_norm_backward, types, constants, registers, loads=3, stores=3, options=options)


def rotation(queries: int, keys: int, half: int, *, registers: int) -> Kernel:
    """Heads of one rank. Loads and stores of queries are 128 bits wide, those of a single key head at least 32."""
    types = dict.fromkeys(("query", "key", "query_out", "key_out"), "*bf16") | {"cos": "*fp32", "sin": "*fp32"}
    types |= dict.fromkeys(("query_stride", "query_head_stride", "key_stride", "key_head_stride"), "i32")
    sizes = rotation_sizes(queries, keys, half)
    options = {"aligned": tuple(types), "num_warps": rotation_warps(sizes)}
    constants = sizes | {"BACK": False}
    types |= {"tokens": "i32"}
    return Kernel(layer_kernels.rotate_heads, types, constants, registers, loads=2, stores=2, options=options)


KERNELS = {
    "statistics_fp32": statistics(FP32, registers=32, loads=8),
    "statistics_bf16": statistics(BF16, registers=32, loads=4),
    "statistics_fp32_unaligned": statistics(FP32, registers=48, loads=0, aligned=False),
    "gradient_fp32_to_bf16": gradient(FP32, BF16, registers=48),
    "gradient_fp32_to_bf16_logprob_only": gradient(FP32, BF16, registers=48, entropy=False),
    "gradient_fp32_to_fp32": gradient(FP32, FP32, registers=48),
    "gradient_bf16_to_bf16": gradient(BF16, BF16, registers=48),
    "gradient_bf16_to_fp32": gradient(BF16, FP32, registers=48),
    "norm_backward_of_7b": norm_backward(3584, registers=64),
    "norm_backward_of_32b": norm_backward(5120, registers=64),
    "rotation_of_7b_on_4_ranks": rotation(7, 1, 64, registers=80),
}


@cache
def compiled(name: str) -> MachineCode:
    kernel = KERNELS[name]
    return compile_ahead_of_time(kernel.function, kernel.types, kernel.constants, **kernel.options)


@pytest.mark.parametrize("name", KERNELS)
def test_registers_and_no_spills(name: str) -> None:
    code = compiled(name)
    assert code.local_bytes == 0 and not code.count(r"\b(LDL|STL)\b")
    assert code.registers <= KERNELS[name].registers


@pytest.mark.parametrize("name", KERNELS)
def test_memory_access_is_128_bits_wide(name: str) -> None:
    code = compiled(name)
    assert code.count(LOADS_128) >= KERNELS[name].loads
    assert code.count(STORES_128) >= KERNELS[name].stores


def test_a_single_key_head_is_not_moved_number_by_number() -> None:
    code = compiled("rotation_of_7b_on_4_ranks")
    assert not code.count(r"\b(LDG|STG)\.E\S*\.U?16\b")


@pytest.mark.parametrize("name", ["statistics_fp32", "statistics_bf16", "statistics_fp32_unaligned"])
def test_threads_do_not_wait_for_each_other_while_reading_a_row(name: str) -> None:
    """Each keeps its own maximum and sums; they are merged behind the loop."""
    (loop,) = [body for body in compiled(name).loops() if any("MUFU.EX2" in line for line in body)]
    assert not any(re.search(r"\b(SHFL|BAR|LDS|STS)\b", line) for line in loop)
    assert sum("MUFU.EX2" in line for line in loop) == 16 + 1  # columns, and the change of the maximum


@pytest.mark.parametrize("name", ["gradient_fp32_to_bf16", "gradient_fp32_to_bf16_logprob_only"])
def test_a_block_is_loaded_by_all_before_any_of_it_is_overwritten(name: str) -> None:
    """The bf16 gradient lies in the memory of the fp32 logits: load, barrier, store, in the loop and behind it."""
    code = compiled(name)
    loops = [body for body in code.loops() if any("MUFU.EX2" in line for line in body)]
    assert len(loops) == 1
    tail = code.instructions[code.instructions.index(loops[0][-1]) + 1 :]
    for part in (loops[0], tail):
        order = [found[1] for line in part if (found := re.search(r"\b(LDG|BAR|STG)\b", line))]
        barrier = order.index("BAR")
        assert "STG" not in order[:barrier] and "LDG" not in order[barrier:]
