"""The two passes over a tile of logits as Triton kernels, one program per row. See `epilogue` for the maths.

A row is walked left to right in blocks. Only the last block needs a mask, and a mask that ends at a multiple of TAIL
columns leaves its loads 128 bits wide; the fewer than TAIL columns behind it are a block of their own. ALIGNED promises
that every row starts at a multiple of 16 bytes: without it the same code moves one element per thread and instruction.

Exponents are taken in base 2 (one instruction); what passes from tile to tile is in nats as it is, so that no change of
base rounds it on the way. No argument is specialised on its value: a new shape never compiles anew.
"""

# Triton's decorator and its arguments have no types.
# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

TAIL = tl.constexpr(16)
LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)
"""The maximum of zero columns. It is finite, because 0 · (−∞) is NaN."""


@triton.jit
def _row_start(base, row, stride, ALIGNED: tl.constexpr):
    """Returns a pointer to the first element of a row.

    64 bits: 16384 rows of 152064 columns are more than 2³¹ elements.
    """
    start = base + row.to(tl.int64) * stride
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    return start


@triton.jit
def _merge_block(z, valid, scale, m, s, w, MASKED: tl.constexpr):
    """Merges z [steps, lanes, vector] into the m, s, w [lanes] each thread keeps for itself: none waits for another."""
    if MASKED:
        highest = tl.maximum(m, tl.max(tl.max(tl.where(valid, z, LOWEST), 2), 0) * scale)
    else:
        highest = tl.maximum(m, tl.max(tl.max(z, 2), 0) * scale)
    d = z * scale - highest[None, :, None]
    e = tl.exp2(d * LOG2E)
    if MASKED:
        d = tl.where(valid, d, 0.0)
        e = tl.where(valid, e, 0.0)
    offset = m - highest
    factor = tl.exp2(offset * LOG2E)
    w = factor * (w + s * offset) + tl.sum(tl.sum(e * d, 2), 0)
    s = factor * s + tl.sum(tl.sum(e, 2), 0)
    return highest, s, w


@triton.jit(do_not_specialize=["z", "stride", "columns", "labels", "scale", "running", "rows"])
def statistics(  # noqa: PLR0913
    z, stride, columns, labels, scale, running, rows, ALIGNED: tl.constexpr, LANES: tl.constexpr,
    VECTOR: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Merges row `program_id` of z [rows, columns] into `running` [4, rows], in place.

    LANES is the number of threads.
    """
    row = tl.program_id(0)
    start = _row_start(z, row, stride, ALIGNED)
    BLOCK: tl.constexpr = STEPS * LANES * VECTOR
    # Loaded as [STEPS, LANES · VECTOR], whose layout leaves no choice: a thread gets VECTOR neighbours of every step.
    offsets = tl.arange(0, STEPS)[:, None] * (LANES * VECTOR) + tl.arange(0, LANES * VECTOR)[None, :]
    m = tl.full((LANES,), LOWEST, tl.float32)
    s = tl.zeros((LANES,), tl.float32)
    w = tl.zeros((LANES,), tl.float32)
    unmasked = columns // BLOCK * BLOCK
    whole = columns // TAIL * TAIL
    for begin in range(0, unmasked, BLOCK):
        block = tl.load(start + begin + offsets).to(tl.float32).reshape(STEPS, LANES, VECTOR)
        m, s, w = _merge_block(block, True, scale, m, s, w, MASKED=False)
    if unmasked < whole:
        valid = unmasked + offsets < whole
        block = tl.load(start + unmasked + offsets, mask=valid, other=0.0).to(tl.float32)
        block = block.reshape(STEPS, LANES, VECTOR)
        m, s, w = _merge_block(block, valid.reshape(STEPS, LANES, VECTOR), scale, m, s, w, MASKED=True)

    k = whole + tl.arange(0, TAIL)
    valid = k < columns
    y = tl.load(start + k, mask=valid, other=0.0).to(tl.float32) * scale
    # Every thread reads these, one writes them below: the reductions in between make it wait for the others.
    m_before = tl.load(running + row)
    s_before = tl.load(running + rows + row)
    w_before = tl.load(running + 2 * rows + row)
    highest = tl.maximum(tl.maximum(m_before, tl.max(m, 0)), tl.max(tl.where(valid, y, LOWEST), 0))
    d = tl.where(valid, y - highest, 0.0)
    e = tl.where(valid, tl.exp2(d * LOG2E), 0.0)
    offset = m - highest
    factor = tl.exp2(offset * LOG2E)
    offset_before = m_before - highest
    factor_before = tl.exp2(offset_before * LOG2E)
    tl.store(running + row, highest)
    tl.store(running + rows + row, factor_before * s_before + tl.sum(factor * s, 0) + tl.sum(e, 0))
    w = tl.sum(factor * (w + s * offset), 0) + tl.sum(e * d, 0)
    tl.store(running + 2 * rows + row, factor_before * (w_before + s_before * offset_before) + w)

    label = tl.load(labels + row)
    own = (label >= 0) & (label < columns)
    chosen = running + 3 * rows + row
    y = tl.load(start + label, mask=own, other=0.0).to(tl.float32) * scale
    tl.store(chosen, tl.load(chosen) + y, mask=own)


@triton.jit
def _slope(z, at_label, scale, lse, mean, base, entropy, chosen, HAS_ENTROPY: tl.constexpr):  # noqa: PLR0913
    """p · (base + entropy · (y − mean)) + chosen · [label] of logits z, with the row's coefficients already scaled."""
    y = z.to(tl.float32) * scale
    p = tl.exp2((y - lse) * LOG2E)
    if HAS_ENTROPY:
        d = p * (base + entropy * (y - mean))
    else:
        d = p * base
    return tl.where(at_label, d + chosen, d)


@triton.jit
def _fill_with_zeros(target, columns, BLOCK: tl.constexpr):
    """Writes zeros to a row without reading it."""
    offsets = tl.arange(0, BLOCK)
    zeros = tl.zeros((BLOCK,), target.dtype.element_ty)
    unmasked = columns // BLOCK * BLOCK
    whole = columns // TAIL * TAIL
    for begin in range(0, unmasked, BLOCK):
        tl.store(target + begin + offsets, zeros)
    tl.store(target + unmasked + offsets, zeros, mask=unmasked + offsets < whole)
    last = whole + tl.arange(0, TAIL)
    tl.store(target + last, tl.zeros((TAIL,), target.dtype.element_ty), mask=last < columns)


@triton.jit(
    do_not_specialize=[
        "z", "out", "stride", "out_stride", "columns", "labels", "scale", "lse", "mean", "logprob", "entropy",
        "lse_gradient",
    ]
)  # fmt: skip
def gradient(  # noqa: PLR0913
    z, out, stride, out_stride, columns, labels, scale, lse, mean, logprob, entropy, lse_gradient,
    ALIGNED: tl.constexpr, SHRINKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes dL/dz of row `program_id` of z [rows, columns] to `out`. `entropy` and `lse_gradient` may be None.

    `out` may lie in the memory of z. SHRINKS: its elements are smaller than those of z, so that a block is written over
    columns at or before its own. Nobody may store before all threads have loaded the block, hence the barriers.
    """
    row = tl.program_id(0)
    target = _row_start(out, row, out_stride, ALIGNED)
    HAS_ENTROPY: tl.constexpr = entropy is not None
    g = tl.load(logprob + row) * scale
    base = -g
    h = 0.0
    active = g != 0.0
    if HAS_ENTROPY:
        h = -scale * tl.load(entropy + row)
        active = active | (h != 0.0)
    if lse_gradient is not None:
        k = tl.load(lse_gradient + row) * scale
        base = k - g
        active = active | (k != 0.0)
    if not active:
        _fill_with_zeros(target, columns, BLOCK)
        return

    start = _row_start(z, row, stride, ALIGNED)
    row_lse = tl.load(lse + row)
    b = tl.load(mean + row)
    label = tl.load(labels + row)
    label = tl.where((label >= 0) & (label < columns), label, -1).to(tl.int32)
    offsets = tl.arange(0, BLOCK)
    unmasked = columns // BLOCK * BLOCK
    whole = columns // TAIL * TAIL
    for begin in range(0, unmasked, BLOCK):
        block = tl.load(start + begin + offsets)
        slope = _slope(block, offsets == label - begin, scale, row_lse, b, base, h, g, HAS_ENTROPY)
        if SHRINKS:
            tl.debug_barrier()
        tl.store(target + begin + offsets, slope.to(target.dtype.element_ty))
    if unmasked < columns:
        # Both parts of the tail are loaded before either is stored.
        at = unmasked + offsets
        last = whole + tl.arange(0, TAIL)
        block = tl.load(start + at, mask=at < whole, other=0.0)
        rest = tl.load(start + last, mask=last < columns, other=0.0)
        slope = _slope(block, offsets == label - unmasked, scale, row_lse, b, base, h, g, HAS_ENTROPY)
        rest_slope = _slope(rest, last == label, scale, row_lse, b, base, h, g, HAS_ENTROPY)
        if SHRINKS:
            tl.debug_barrier()
        tl.store(target + at, slope.to(target.dtype.element_ty), mask=at < whole)
        tl.store(target + last, rest_slope.to(target.dtype.element_ty), mask=last < columns)
