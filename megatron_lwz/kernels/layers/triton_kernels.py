"""Triton kernels of a layer's ops. Loads are widened to fp32, stores round once to the type of the target.

A row is one token. Widths are constants of a model, so they are compile-time constants here: masks vanish where the
width fills the block. Row offsets are 64-bit, since tokens × width passes 2^31.
"""

# Triton's decorator and its arguments have no types.
# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm_forward(x, weight, out, scales, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One program per row: out = weight · x · scale; scale = 1 / sqrt(mean(x²) + eps) is kept for backward."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    value = tl.load(x + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 0) / WIDTH + eps)
    tl.store(scales + row, scale)
    tl.store(out + row * WIDTH + columns, value * scale * factor, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def rms_norm_backward(  # noqa: PLR0913
    gradient, x, weight, scales, x_gradient, partial, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Processes every n-th row per program (n programs). `partial` [n, WIDTH] gets each program's weight gradient.

    The caller sums `partial` in a fixed order without atomics, so the weight gradient is the same in every run.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for turn in range(0, tl.cdiv(rows - program, programs)):
        row = (program + turn * programs).to(tl.int64)
        scale = tl.load(scales + row)
        normed = tl.load(x + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32) * scale
        value = tl.load(gradient + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        total += value * normed
        value *= factor
        shared = tl.sum(value * normed, 0) / WIDTH
        tl.store(x_gradient + row * WIDTH + columns, (value - normed * shared) * scale, mask=inside)
    tl.store(partial + program.to(tl.int64) * WIDTH + columns, total, mask=inside)


@triton.jit
def _turn_heads(  # noqa: PLR0913
    source, target, token, real, token_stride, head_stride, cos, sin, HEADS: tl.constexpr, HALF: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr
):  # fmt: skip
    heads = tl.arange(0, HEAD_BLOCK)[None, :, None]
    columns = tl.arange(0, HALF_BLOCK)[None, None, :]
    inside = real & (heads < HEADS) & (columns < HALF)
    places = source + token * token_stride + heads * head_stride + columns
    first = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(places + HALF, mask=inside, other=0.0).to(tl.float32)
    places = target + (token * HEADS + heads) * 2 * HALF + columns
    tl.store(places, first * cos - second * sin, mask=inside)
    tl.store(places + HALF, second * cos + first * sin, mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def rotate_heads(  # noqa: PLR0913
    query, key, query_out, key_out, cos, sin, tokens, query_stride, query_head_stride, key_stride, key_head_stride,
    BACK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, HALF: tl.constexpr,
    TOKEN_BLOCK: tl.constexpr, QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr
):  # fmt: skip
    """Rotates all query and key heads of TOKEN_BLOCK tokens by their angles, or back (`BACK`, for the gradient).

    A single key head of one token has fewer numbers than a program has threads; of some tokens, each thread moves a few.
    """
    token = (tl.program_id(0).to(tl.int64) * TOKEN_BLOCK + tl.arange(0, TOKEN_BLOCK))[:, None, None]
    columns = tl.arange(0, HALF_BLOCK)[None, None, :]
    real = token < tokens
    places = token * HALF + columns
    cosines = tl.load(cos + places, mask=real & (columns < HALF), other=0.0)
    sines = tl.load(sin + places, mask=real & (columns < HALF), other=0.0)
    if BACK:
        sines = -sines
    _turn_heads(
        query, query_out, token, real, query_stride, query_head_stride, cosines, sines,
        QUERIES, HALF, QUERY_BLOCK, HALF_BLOCK,
    )  # fmt: skip
    _turn_heads(
        key, key_out, token, real, key_stride, key_head_stride, cosines, sines, KEYS, HALF, KEY_BLOCK, HALF_BLOCK
    )


@triton.jit
def swiglu_forward(x, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Computes a block of columns of one row: out [WIDTH] = silu(gate) · up of x [2 · WIDTH] = [gate | up]."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    places = x + row * 2 * WIDTH + columns
    gate = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(places + WIDTH, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + columns, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def swiglu_backward(gradient, x, x_gradient, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of [gate | up] for a block of columns of one row; silu′(g) = σ(g) · (1 + g · (1 − σ(g)))."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    places = row * 2 * WIDTH + columns
    gate = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + places + WIDTH, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(gradient + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    half = tl.sigmoid(gate)
    tl.store(x_gradient + places, value * up * half * (1.0 + gate * (1.0 - half)), mask=inside)
    tl.store(x_gradient + places + WIDTH, value * gate * half, mask=inside)
