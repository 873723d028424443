"""The two passes over transposed logits that are stored in bf16 around a shift: half the memory of fp32.

A tile is Zᵀ [v, n] bf16 with Zᵀ[j, t] = round(z[t, j] − c[t]). With c near the row's lse (an earlier pass knows it), the
columns that matter are the ones near 0, which bf16 resolves best: a log-prob is off by 0.001 and at worst by a few times
that, where rounding the logits as they are puts it off by 0.03 and at worst 0.1. The shift has to be subtracted before
the rounding: the bias of a product W · Xᵀ does that. The label's logit is not taken from here (a rare label's is coarse):
it is a dot product in fp32.

Not chosen by any backend: what it saves has not been measured on a GPU yet.
"""

# Triton's decorator and its arguments have no types.
# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_lwz.kernels.linear_logprob.epilogue import RowGradients
from megatron_lwz.kernels.linear_logprob.triton import LAUNCH
from megatron_lwz.kernels.linear_logprob.triton_kernels import LOG2E, LOWEST

CONSTANTS = {"SPLIT": 2048, "ROWS": 64, "OWN": 16, "TOKENS": 64}
"""Each program of `statistics` takes SPLIT vocabulary rows: enough programs for all SMs, few enough partial results.

A step covers ROWS rows and TOKENS tokens; OWN is the number of rows 128 threads cover with 8 tokens (16 bytes) each.
"""
MULTIPLE = 16
"""The number of tokens must be a multiple of this, so that a mask leaves loads 128 bits wide."""


@triton.jit(do_not_specialize=["zt", "stride", "vocabulary", "tokens", "shift", "scale", "partials"])
def statistics(  # noqa: PLR0913
    zt, stride, vocabulary, tokens, shift, scale, partials, SPLIT: tl.constexpr, ROWS: tl.constexpr,
    OWN: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """partials [splits, 3, tokens]: m, s, w of SPLIT rows, with m of the logits themselves (the shift added back)."""
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    tokens = tokens // 16 * 16
    begin = tl.program_id(1) * SPLIT
    end = tl.minimum(begin + SPLIT, vocabulary)
    row = tl.arange(0, ROWS)
    # Each thread keeps its own maximum and sums, of 8 tokens and every 16th row; they are merged at the end.
    m = tl.full((OWN, TOKENS), LOWEST, tl.float32)
    s = tl.zeros((OWN, TOKENS), tl.float32)
    w = tl.zeros((OWN, TOKENS), tl.float32)
    for first in range(begin, end, ROWS):
        v = first + row
        at = tl.multiple_of(zt + v.to(tl.int64)[:, None] * stride, (16, 16)) + t[None, :]
        valid = (v < end)[:, None] & (t < tokens)[None, :]
        block = tl.load(at, mask=valid, other=0.0).to(tl.float32).reshape(ROWS // OWN, OWN, TOKENS)
        valid = valid.reshape(ROWS // OWN, OWN, TOKENS)
        highest = tl.maximum(m, tl.max(tl.where(valid, block, LOWEST), 0) * scale)
        d = tl.where(valid, block * scale - highest[None, :, :], 0.0)
        e = tl.where(valid, tl.exp2(d * LOG2E), 0.0)
        offset = m - highest
        factor = tl.exp2(offset * LOG2E)
        w = factor * (w + s * offset) + tl.sum(e * d, 0)
        s = factor * s + tl.sum(e, 0)
        m = highest
    highest = tl.max(m, 0)
    offset = m - highest[None, :]
    factor = tl.exp2(offset * LOG2E)
    target = partials + tl.program_id(1) * 3 * tokens + t
    c = tl.load(shift + t, mask=t < tokens, other=0.0).to(tl.float32) * scale
    tl.store(target, highest + c, mask=t < tokens)
    tl.store(target + tokens, tl.sum(factor * s, 0), mask=t < tokens)
    tl.store(target + 2 * tokens, tl.sum(factor * (w + s * offset), 0), mask=t < tokens)


@triton.jit(
    do_not_specialize=[
        "zt", "stride", "vocabulary", "tokens", "shift", "labels", "scale", "lse", "mean", "logprob", "entropy",
        "lse_gradient",
    ]
)  # fmt: skip
def gradient(  # noqa: PLR0913
    zt, stride, vocabulary, tokens, shift, labels, scale, lse, mean, logprob, entropy, lse_gradient,
    ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Replaces zt by dL/dz, ROWS rows and TOKENS tokens per program. `entropy` and `lse_gradient` may be None."""
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    tokens = tokens // 16 * 16
    v = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = t < tokens
    at = tl.multiple_of(zt + v.to(tl.int64)[:, None] * stride, (16, 16)) + t[None, :]
    valid = (v < vocabulary)[:, None] & inside[None, :]
    c = tl.load(shift + t, mask=inside, other=0.0).to(tl.float32) * scale
    g = tl.load(logprob + t, mask=inside, other=0.0) * scale
    base = -g
    active = g != 0.0
    if lse_gradient is not None:
        k = tl.load(lse_gradient + t, mask=inside, other=0.0) * scale
        base += k
        active = active | (k != 0.0)
    y = tl.load(at, mask=valid, other=0.0).to(tl.float32) * scale  # relative to the shift
    p = tl.exp2((y - (tl.load(lse + t, mask=inside, other=0.0) - c)[None, :]) * LOG2E)
    slope = tl.zeros_like(y) + base[None, :]
    if entropy is not None:
        h = -scale * tl.load(entropy + t, mask=inside, other=0.0)
        slope += h[None, :] * (y - (tl.load(mean + t, mask=inside, other=0.0) - c)[None, :])
        active = active | (h != 0.0)
    label = tl.load(labels + t, mask=inside, other=-1)
    d = p * slope + tl.where(v[:, None] == label[None, :], g[None, :], 0.0)
    tl.store(at, tl.where(active[None, :], d, 0.0).to(zt.dtype.element_ty), mask=valid)


def shifted_statistics(zt: Tensor, shift: Tensor, scale: float, running: Tensor) -> None:
    """Merges Zᵀ [v, n] bf16, stored around shift [n], into `running` [4, n]; the label's logit is left as it is."""
    vocabulary, tokens = _shape(zt)
    splits = triton.cdiv(vocabulary, CONSTANTS["SPLIT"])
    partials = torch.empty(splits, 3, tokens, device=zt.device)
    statistics[(triton.cdiv(tokens, CONSTANTS["TOKENS"]), splits)](
        zt, zt.stride(0), vocabulary, tokens, shift, float(scale), partials,
        **CONSTANTS, **LAUNCH,
    )  # fmt: skip
    m, s, w = torch.cat([running[None, :3], partials]).unbind(1)
    highest = m.amax(0)
    offset = m - highest
    factor = offset.exp()
    running[2] = (factor * (w + s * offset)).sum(0)
    running[1] = (factor * s).sum(0)
    running[0] = highest


def shifted_gradient(zt: Tensor, shift: Tensor, labels: Tensor, scale: float, rows: RowGradients) -> Tensor:
    """dL/dz, transposed: [v, n] bf16 in the memory of Zᵀ. Labels [n] outside [0, v) lie in another tile."""
    vocabulary, tokens = _shape(zt)
    gradient[(triton.cdiv(tokens, CONSTANTS["TOKENS"]), triton.cdiv(vocabulary, CONSTANTS["ROWS"]))](
        zt, zt.stride(0), vocabulary, tokens, shift, labels, float(scale),
        rows.lse, rows.mean, rows.logprob, rows.entropy, rows.lse_gradient,
        ROWS=CONSTANTS["ROWS"], TOKENS=CONSTANTS["TOKENS"], **LAUNCH,
    )  # fmt: skip
    return zt


def _shape(zt: Tensor) -> tuple[int, int]:
    """(v, n), and that loads may be 128 bits wide."""
    assert zt.shape[1] % MULTIPLE == 0 and zt.stride(0) % 8 == 0 and zt.data_ptr() % 16 == 0
    return zt.shape[0], zt.shape[1]
