"""What each of our Triton kernels takes: dtypes, sizes that follow from the grid, and block sizes.

The docstrings in `kernels/*/…kernels.py` say the same in words. A test fails for a kernel that has no contract here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_lwz.rehearsal.launches import Contract, Launch

_FP32, _INT64 = torch.float32, torch.int64
_VALUES = (torch.float32, torch.bfloat16, torch.float16)
_PARTIALS = 13
"""Sums and maxima per block of `token_loss`."""


def _rms_norm_forward(k: Launch) -> None:
    rows, width = k.grid[0], k["WIDTH"]
    k.programs(rows)
    x = k.tensor("x", _VALUES, rows * width)
    k.tensor("out", x.dtype, rows * width)
    k.tensor("weight", _VALUES, width)
    k.tensor("scales", _FP32, rows)
    k.block("BLOCK", at_least=width)


def _rms_norm_backward(k: Launch) -> None:
    rows, width, programs = k["rows"], k["WIDTH"], k.grid[0]
    k.programs(programs)
    x = k.tensor("x", _VALUES, rows * width)
    for name in ("gradient", "x_gradient"):
        k.tensor(name, x.dtype, rows * width)
    k.tensor("weight", _VALUES, width)
    k.tensor("scales", _FP32, rows)
    k.tensor("partial", _FP32, programs * width)
    k.block("BLOCK", at_least=width)


def _rotate_heads(k: Launch) -> None:
    tokens, half = k["tokens"], k["HALF"]
    k.programs(-(-tokens // k.block("TOKEN_BLOCK")))
    for name, heads in (("query", k["QUERIES"]), ("key", k["KEYS"])):
        source = k.tensor(name, _VALUES)
        if tuple(source.shape) != (tokens, heads, 2 * half) or source.stride(2) != 1:
            k.fail(
                name, f"{tuple(source.shape)}, strides {source.stride()}: must be {(tokens, heads, 2 * half)} in rows"
            )
        k.equal(f"{name}_stride", source.stride(0))
        k.equal(f"{name}_head_stride", source.stride(1))
        k.tensor(f"{name}_out", source.dtype, tokens * heads * 2 * half)
        k.block(f"{name.upper()}_BLOCK", at_least=heads)
    for name in ("cos", "sin"):
        k.tensor(name, _FP32, tokens * half)
    k.block("HALF_BLOCK", at_least=half)


def _swiglu_forward(k: Launch) -> None:
    rows, width = k.grid[0], k["WIDTH"]
    x = k.tensor("x", _VALUES, 2 * rows * width)
    k.tensor("out", x.dtype, rows * width)
    k.programs(rows, -(-width // k.block("BLOCK")))


def _swiglu_backward(k: Launch) -> None:
    rows, width = k.grid[0], k["WIDTH"]
    x = k.tensor("x", _VALUES, 2 * rows * width)
    k.tensor("gradient", x.dtype, rows * width)
    k.tensor("x_gradient", x.dtype, 2 * rows * width)
    k.programs(rows, -(-width // k.block("BLOCK")))


def _statistics(k: Launch) -> None:
    rows = k["rows"]
    k.programs(rows)
    _tile(k, "z", k["stride"], rows)
    k.tensor("labels", _INT64, rows)
    k.tensor("running", _FP32, 4 * rows)
    for name in ("LANES", "VECTOR", "STEPS"):
        k.block(name)


def _gradient(k: Launch) -> None:
    rows = k.grid[0]
    k.programs(rows)
    z = _tile(k, "z", k["stride"], rows)
    out = _tile(k, "out", k["out_stride"], rows)
    k.equal("SHRINKS", out.element_size() < z.element_size())
    k.tensor("labels", _INT64, rows)
    for name in ("lse", "mean", "logprob"):
        k.tensor(name, _FP32, rows)
    for name in ("entropy", "lse_gradient"):
        k.optional(name, _FP32, rows)
    k.block("BLOCK")


def _tile(k: Launch, name: str, stride: int, rows: int) -> Tensor:
    """Requires logits [rows, columns] whose rows are contiguous and `stride` apart."""
    tile = k.tensor(name, (torch.float32, torch.bfloat16))
    if tuple(tile.shape) != (rows, k["columns"]) or (rows and tile.stride() != (stride, 1)):
        k.fail(
            name,
            f"{tuple(tile.shape)}, strides {tile.stride()}: must be {(rows, k['columns'])} with rows {stride} apart",
        )
    aligned = stride * tile.element_size() % 16 == 0 and tile.storage_offset() * tile.element_size() % 16 == 0
    if k["ALIGNED"] and not aligned:
        k.fail(name, f"rows {stride} apart from {tile.storage_offset()} on do not start at multiples of 16 bytes")
    return tile


def _sequence_sums(k: Launch) -> None:
    tokens, sequences = k["tokens"], k["sequences"]
    k.programs(-(-sequences // k.block("IDS")))
    for name in ("logprob", "behaviour", "weight"):
        k.tensor(name, _FP32, tokens)
    k.optional("old", _FP32, tokens)
    k.tensor("sequence_ids", _INT64, tokens)
    for name in ("ratio_sums", "mismatch_sums"):
        k.optional(name, _FP32, 2 * sequences)
    k.block("BLOCK")


def _token_loss(k: Launch) -> None:
    count, tokens, sequences, shards = (k[name] for name in ("n", "tokens", "sequences", "SHARDS"))
    blocks = max(1, -(-count // k.block("BLOCK")))
    k.programs(blocks)
    k.tensor("statistics", _FP32, 4 * shards * count if shards else count)
    k.optional("entropies", _FP32, count)
    k.optional("rows", _INT64, count)
    for name in ("behaviour", "advantages", "weights"):
        k.tensor(name, _FP32, tokens)
    for name in ("old", "reference"):
        k.optional(name, _FP32, tokens)
    k.optional("sequence_ids", _INT64, tokens)
    for name in ("ratio_sums", "mismatch_sums"):
        k.optional(name, _FP32, 2 * sequences)
    k.tensor("out", _FP32, (6 if shards else 2) * k["stride"])
    k.tensor("partials", _FP32, _PARTIALS * blocks)


CONTRACTS: dict[str, Contract] = {
    "layers.rms_norm_forward": _rms_norm_forward,
    "layers.rms_norm_backward": _rms_norm_backward,
    "layers.rotate_heads": _rotate_heads,
    "layers.swiglu_forward": _swiglu_forward,
    "layers.swiglu_backward": _swiglu_backward,
    "linear_logprob.statistics": _statistics,
    "linear_logprob.gradient": _gradient,
    "grpo_loss.sequence_sums": _sequence_sums,
    "grpo_loss.token_loss": _token_loss,
}
"""Package and function of a kernel → its contract."""
