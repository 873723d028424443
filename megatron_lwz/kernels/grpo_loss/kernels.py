"""The two Triton kernels: one for sums per sequence, one for everything else of the loss in one launch.

The formulas are those of `algorithms/grpo.py`, which explains them. Here they include their derivatives. An absent
tensor or coefficient is None and a mode is a constexpr, so unused options are not compiled.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# (arguments of a Triton kernel are pointers and scalars of the device; there is nothing to annotate them with)

from __future__ import annotations

import triton
import triton.language as tl

LOG_RATIO_LIMIT = tl.constexpr(20.0)
"""Bound on |log p − log q| before exp, as in `algorithms/grpo.py`."""
_VARYING = [
    *("n", "tokens", "sequences"),
    *("statistics", "entropies", "rows", "logprob", "old", "behaviour", "reference", "advantages"),
    *("weight", "weights", "sequence_ids", "ratio_sums", "mismatch_sums"),
]
"""Arguments whose size or alignment differs from one micro-batch to the next: Triton compiles nothing anew for them.

A thread reads single numbers, so an aligned pointer would gain nothing.
"""
SUMS = tl.constexpr(11)
"""Number of partials that are summed over blocks. The others are maxima."""


@triton.jit
def _difference(a, b):
    """Returns a − b within the limit, and its derivative: 1 inside the limit, 0 elsewhere."""
    raw = a - b
    inside = tl.abs(raw) <= LOG_RATIO_LIMIT
    return tl.minimum(tl.maximum(raw, -LOG_RATIO_LIMIT), LOG_RATIO_LIMIT), inside


@triton.jit
def _k3(d):
    """Returns e^−d − 1 + d and its derivative 1 − e^−d. Near 0, where the differences cancel, it uses the series."""
    x = -d
    series = 1.0 / 362880 * x + 1.0 / 40320
    series = series * x + 1.0 / 5040
    series = series * x + 1.0 / 720
    series = series * x + 1.0 / 120
    series = series * x + 1.0 / 24
    series = series * x + 1.0 / 6
    series = (series * x + 0.5) * x * x
    small = tl.abs(x) < 0.5
    less_one = tl.exp(x) - 1.0
    return tl.where(small, series, less_one - x), -tl.where(small, series + x, less_one)


@triton.jit
def _combine(statistics, n, at, inside, SHARDS: tl.constexpr):
    """[SHARDS, 4, n] → logprob, entropy, lse, mean of rows `at`, like `combine` of linear_logprob/epilogue.py."""
    highest = tl.load(statistics + at, mask=inside, other=0.0)
    for shard in tl.static_range(1, SHARDS):
        highest = tl.maximum(highest, tl.load(statistics + 4 * shard * n + at, mask=inside, other=0.0))
    total = tl.zeros_like(highest)
    mean = tl.zeros_like(highest)
    chosen = tl.zeros_like(highest)
    for shard in tl.static_range(SHARDS):
        row = statistics + 4 * shard * n + at
        offset = tl.load(row, mask=inside, other=0.0) - highest
        s = tl.load(row + n, mask=inside, other=1.0)
        w = tl.load(row + 2 * n, mask=inside, other=0.0)
        factor = tl.exp(offset)
        total += factor * s
        mean += factor * (w + s * offset)
        chosen += tl.load(row + 3 * n, mask=inside, other=0.0)
    mean = mean / total
    log_total = tl.log(total)
    lse = highest + log_total
    return chosen - lse, log_total - mean, lse, highest + mean


@triton.jit
def _sequence_mean(sums, ids, sequences, used):
    """Returns the mean of each token's sequence, from [2, N]: total and count."""
    total = tl.load(sums + ids, mask=used, other=0.0)
    count = tl.load(sums + sequences + ids, mask=used, other=1.0)
    return total / tl.maximum(count, 1.0)


@triton.jit(do_not_specialize=_VARYING)
def sequence_sums(  # noqa: PLR0913
    logprob,  # [T], of the policy
    old,  # [T] or None: old = policy
    behaviour,  # [T]
    weight,  # [T]
    sequence_ids,  # [T] int64
    ratio_sums,  # out [2, N] or None: Σ log policy / old, and the count of weighted tokens
    mismatch_sums,  # out [2, N] or None: Σ log old / behaviour, and the count
    tokens,
    sequences,
    BLOCK: tl.constexpr,
    IDS: tl.constexpr,
):
    """Computes sums per sequence. One program owns IDS sequences and reads all T ids, in order, without atomics.

    The order of the ids does not matter. Packed ids come in runs, so most blocks contain none of a program's sequences,
    and only reading their ids costs time.
    """
    ids = tl.program_id(0) * IDS + tl.arange(0, IDS)
    count = tl.zeros((IDS,), tl.float32)
    ratio = tl.zeros((IDS,), tl.float32)
    mismatch = tl.zeros((IDS,), tl.float32)
    for start in range(0, tokens, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < tokens
        used = tl.load(weight + at, mask=inside, other=0.0) > 0.0
        member = tl.load(sequence_ids + at, mask=used, other=-1)
        mine = (member[:, None] == ids[None, :]) & used[:, None]
        if tl.max(tl.max(mine.to(tl.int32), 1), 0) > 0:
            count += tl.sum(tl.where(mine, 1.0, 0.0), 0)
            before = tl.load((logprob if old is None else old) + at, mask=used, other=0.0)
            if ratio_sums is not None:
                now = tl.load(logprob + at, mask=used, other=0.0)
                value, _ = _difference(now, before)
                ratio += tl.sum(tl.where(mine, value[:, None], 0.0), 0)
            if mismatch_sums is not None:
                value, _ = _difference(before, tl.load(behaviour + at, mask=used, other=0.0))
                mismatch += tl.sum(tl.where(mine, value[:, None], 0.0), 0)
    real = ids < sequences
    if ratio_sums is not None:
        tl.store(ratio_sums + ids, ratio, mask=real)
        tl.store(ratio_sums + sequences + ids, count, mask=real)
    if mismatch_sums is not None:
        tl.store(mismatch_sums + ids, mismatch, mask=real)
        tl.store(mismatch_sums + sequences + ids, count, mask=real)


@triton.jit(do_not_specialize=_VARYING)
def token_loss(  # noqa: PLR0913, PLR0915
    statistics,  # SHARDS > 0: [SHARDS, 4, n]; SHARDS = 0: log-probs [n]
    entropies,  # [n] with SHARDS = 0, else None
    rows,  # [n] int64 in [0, T], T = padding; None: rows are 0 … n − 1
    old,  # [T] or None: old = policy
    behaviour,  # [T]
    reference,  # [T] or None
    advantages,  # [T]
    weights,  # [T]
    sequence_ids,  # [T] int64, only with sums
    ratio_sums,  # [2, N]: the ratio is the sequence's; None: the token's
    mismatch_sums,  # [2, N]: the mismatch weight is the sequence's
    out,  # [2 or 6, stride]: g, h and with SHARDS > 0 logprob, entropy, lse, mean
    partials,  # [13, blocks]
    n,
    tokens,  # T
    sequences,  # N
    stride,
    low,
    high,
    dual_clip,  # None: off
    kl_coefficient,
    entropy_coefficient,  # None: 0
    cap,
    lowest,  # 1 / cap
    SHARDS: tl.constexpr,
    OBJECTIVE: tl.constexpr,  # clip, cispo
    MISMATCH: tl.constexpr,  # none, truncate, mask
    KL: tl.constexpr,  # none, reward, k2, k3
    KL_IMPORTANCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Computes log-probs, loss, its derivatives g (in logprob), h (in entropy), and partial metrics of BLOCK rows."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    if rows is None:
        token = at
    else:
        token = tl.load(rows + at, mask=inside, other=tokens)
    advantage = tl.load(advantages + token, mask=token < tokens, other=0.0)
    weight = tl.load(weights + token, mask=token < tokens, other=0.0)
    used = weight > 0.0

    if SHARDS > 0:
        logprob, entropy, lse, mean = _combine(statistics, n, at, inside, SHARDS)
        tl.store(out + 2 * stride + at, logprob, mask=inside)
        tl.store(out + 3 * stride + at, entropy, mask=inside)
        tl.store(out + 4 * stride + at, lse, mask=inside)
        tl.store(out + 5 * stride + at, mean, mask=inside)
    else:
        logprob = tl.load(statistics + at, mask=inside, other=0.0)
        entropy = tl.load(entropies + at, mask=inside, other=0.0)
    before = logprob if old is None else tl.load(old + token, mask=used, other=0.0)

    # Policy / old, and its derivative in logprob. A sequence's ratio has the gradient of the token's own log-prob.
    log_ratio, near_old = _difference(logprob, before)
    token_ratio = tl.exp(log_ratio)
    ratio = token_ratio
    ratio_slope = tl.where(near_old, ratio, 0.0)
    if sequence_ids is not None:
        member = tl.load(sequence_ids + token, mask=used, other=0)
    if ratio_sums is not None:
        ratio = tl.exp(_sequence_mean(ratio_sums, member, sequences, used))
        ratio_slope = ratio

    # Old / behaviour: a weight without gradient.
    mismatch, _ = _difference(before, tl.load(behaviour + token, mask=used, other=0.0))
    correction = tl.full((BLOCK,), 1.0, tl.float32)
    kept = correction > 0.0
    if MISMATCH != "none":
        if mismatch_sums is None:
            correction = tl.exp(mismatch)
        else:
            correction = tl.exp(_sequence_mean(mismatch_sums, member, sequences, used))
        kept = correction <= cap
        if MISMATCH == "mask":
            kept = kept & (correction >= lowest)
            correction = tl.where(kept, correction, 0.0)
        else:
            correction = tl.minimum(correction, cap)

    if reference is None:
        kl, _ = _k3(-log_ratio)
    else:
        behind = tl.load(reference + token, mask=used, other=0.0)
        distance, near_reference = _difference(logprob, behind)
        kl, kl_slope = _k3(distance)
        if KL == "reward":
            advantage -= kl_coefficient * (before - behind)

    below = ratio < low
    above = ratio > high
    clipped = -tl.minimum(tl.maximum(ratio, low), high) * advantage
    if OBJECTIVE == "cispo":
        # The clipped ratio is a weight without gradient.
        loss = clipped * logprob
        slope = clipped
    else:
        # Inside the clip both sides are equal and have the same slope.
        unclipped = -ratio * advantage
        loss = tl.maximum(unclipped, clipped)
        slope = tl.where(unclipped >= clipped, -advantage * ratio_slope, 0.0)
        below = below & (advantage < 0.0)
        above = above & (advantage > 0.0)
        if dual_clip is not None:
            bound = -dual_clip * advantage
            beyond = (advantage < 0.0) & (loss > bound)
            loss = tl.where(beyond, bound, loss)
            slope = tl.where(beyond, 0.0, slope)
    loss *= correction
    slope *= correction

    if KL == "k2" or KL == "k3":
        estimate = distance * distance * 0.5 if KL == "k2" else kl
        estimate_slope = tl.where(near_reference, distance if KL == "k2" else kl_slope, 0.0)
        if KL_IMPORTANCE:
            if KL == "k3":
                # The weight has a gradient too. Inside both limits the sum of the two is the distance itself.
                estimate_slope += tl.where(near_old, estimate, 0.0)
                estimate_slope = tl.where(near_old & near_reference, distance, estimate_slope)
            importance = correction * token_ratio
            estimate *= importance
            estimate_slope *= importance
        loss += kl_coefficient * estimate
        slope += kl_coefficient * estimate_slope
    if entropy_coefficient is not None:
        loss -= entropy_coefficient * entropy
        tl.store(out + stride + at, tl.where(used, -entropy_coefficient * weight, 0.0), mask=inside)
    tl.store(out + at, tl.where(used, slope * weight, 0.0), mask=inside)

    blocks = tl.num_programs(0)
    cell = partials + tl.program_id(0)
    away = tl.abs(mismatch)
    engine_kl, _ = _k3(-mismatch)
    tl.store(cell, tl.sum(tl.where(used, loss * weight, 0.0), 0))
    tl.store(cell + blocks, tl.sum(tl.where(used, 1.0, 0.0), 0))
    tl.store(cell + 2 * blocks, tl.sum(tl.where(used, entropy, 0.0), 0))
    tl.store(cell + 3 * blocks, tl.sum(tl.where(used, kl, 0.0), 0))
    tl.store(cell + 4 * blocks, tl.sum(tl.where(used, ratio, 0.0), 0))
    tl.store(cell + 5 * blocks, tl.sum(tl.where(used, engine_kl, 0.0), 0))
    tl.store(cell + 6 * blocks, tl.sum(tl.where(used, correction, 0.0), 0))
    tl.store(cell + 7 * blocks, tl.sum(tl.where(used & (kept == 0), 1.0, 0.0), 0))
    tl.store(cell + 8 * blocks, tl.sum(tl.where(used, away, 0.0), 0))
    tl.store(cell + 9 * blocks, tl.sum(tl.where(used & below, 1.0, 0.0), 0))
    tl.store(cell + 10 * blocks, tl.sum(tl.where(used & above, 1.0, 0.0), 0))
    tl.store(cell + 11 * blocks, tl.max(tl.where(used, ratio, 0.0), 0))
    tl.store(cell + 12 * blocks, tl.max(tl.where(used, away, 0.0), 0))
