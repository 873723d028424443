"""Launches of the two kernels from per-token tensors and the config section, and metrics from their partials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from megatron_lwz.config.sections import GrpoSection
from megatron_lwz.kernels.grpo_loss import kernels

ContextSum = Callable[[Tensor], Tensor]
"""Function that adds a [2, N] tensor over context-parallel ranks."""

_SUMS = (
    "loss",
    "tokens",
    "entropy",
    "kl",
    "ratio",
    "mismatch/kl",
    "mismatch/weight",
    "mismatch/clipped",
    "mismatch/difference",
    "clip_fraction_low",
    "clip_fraction_high",
)
_MAXIMA = ("ratio/max", "mismatch/difference/max")
_PARTIALS = len(_SUMS) + len(_MAXIMA)
"""Number of rows of `partials`. They are in the order in which the kernel writes them."""

TOKEN_LOSS_LAUNCH = {"BLOCK": 128, "num_warps": 4}
"""Rows per program: one per thread, so that 16k rows occupy all SMs of an H200."""
SEQUENCE_SUMS_LAUNCH = {"BLOCK": 256, "IDS": 16, "num_warps": 4}
_ALIGNMENT = 32
"""Rows of the output start at multiples of this many numbers, so that their readers can use vector loads."""


@dataclass(frozen=True)
class TokenInputs:
    """Inputs of a token's loss besides the policy's distribution; all [T] fp32, contiguous."""

    old: Tensor | None
    """None: the policy's own log-prob without gradient (one update per batch), so that every ratio is 1."""
    behaviour: Tensor
    reference: Tensor | None
    """None when the KL coefficient is 0; then the metric `kl` is between old and policy."""
    advantage: Tensor
    weight: Tensor
    """Loss weight ≥ 0. Tokens of weight 0 take no part in the loss, its gradient or a metric."""


@dataclass(frozen=True)
class SequenceMeans:
    """Inputs of sequence-level options: ids [T] int64, and [2, N] (totals, counts) of the log-ratios that need them."""

    ids: Tensor
    ratio: Tensor | None
    mismatch: Tensor | None


def has_sequence_ratio(inputs: TokenInputs, section: GrpoSection) -> bool:
    """Whether the ratio needs all tokens of a sequence. If old is the policy, it does not, because every ratio is 1."""
    return section.ratio == "sequence" and inputs.old is not None


def check(inputs: TokenInputs, section: GrpoSection) -> None:
    """Rejects inputs that no launch could compute."""
    assert section.loss_function is None, "a function of the user's own has no fused twin"
    if section.kl_coefficient and inputs.reference is None:
        raise ValueError("a KL coefficient above 0 needs the reference model's log-probs")
    given = [value for value in vars(inputs).values() if value is not None]
    assert all(value.dtype == torch.float32 and value.is_contiguous() for value in given), "[T] fp32, contiguous"
    assert len({value.shape for value in given}) == 1, [value.shape for value in given]


def sequence_means(
    logprob: Tensor,
    inputs: TokenInputs,
    section: GrpoSection,
    *,
    ids: Tensor,
    sequences: int,
    context_sum: ContextSum,
) -> SequenceMeans | None:
    """Returns sums of the log-ratios per sequence over all context-parallel ranks; None without sequence-level options.

    `ids` [T] int64 in [0, sequences), −1 on padding. `context_sum` is called once per mean, on every rank.
    """
    ratio, mismatch = (
        logprob.new_empty(2, sequences) if wanted else None
        for wanted in (has_sequence_ratio(inputs, section), section.mismatch == "sequence")
    )
    if ratio is None and mismatch is None:
        return None
    kernels.sequence_sums[(triton.cdiv(sequences, SEQUENCE_SUMS_LAUNCH["IDS"]),)](
        logprob,
        inputs.old,
        inputs.behaviour,
        inputs.weight,
        ids,
        ratio,
        mismatch,
        len(inputs.weight),
        sequences,
        **SEQUENCE_SUMS_LAUNCH,
    )
    ratio, mismatch = (None if sums is None else context_sum(sums) for sums in (ratio, mismatch))
    return SequenceMeans(ids, ratio, mismatch)


def token_loss(
    statistics: Tensor,
    inputs: TokenInputs,
    section: GrpoSection,
    *,
    entropy: Tensor | None = None,
    rows: Tensor | None = None,
    means: SequenceMeans | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs one launch and returns (out, partials [13, blocks]).

    With `rows` [n], `statistics` are the gathered [R, 4, n] and `out` is g, h, logprob, entropy, lse, mean [6, n].
    Without, they are log-probs [T] next to `entropy` [T], and `out` is g, h [2, T]. h is written only where
    `entropy_coefficient` is not 0. g and h are 0 on padding rows and where the weight is 0.
    """
    shards = 0 if rows is None else statistics.shape[0]
    count = statistics.shape[-1]
    stride = triton.cdiv(count, _ALIGNMENT) * _ALIGNMENT
    blocks = max(1, triton.cdiv(count, TOKEN_LOSS_LAUNCH["BLOCK"]))
    out = statistics.new_empty(6 if shards else 2, stride)
    partials = statistics.new_empty(_PARTIALS, blocks)
    kernels.token_loss[(blocks,)](
        statistics,
        entropy,
        rows,
        inputs.old,
        inputs.behaviour,
        inputs.reference,
        inputs.advantage,
        inputs.weight,
        None if means is None else means.ids,
        None if means is None else means.ratio,
        None if means is None else means.mismatch,
        out,
        partials,
        count,
        len(inputs.weight),
        0 if means is None else _sequences(means),
        stride,
        **_hyper_parameters(section),
        **_modes(section),
        SHARDS=shards,
        **TOKEN_LOSS_LAUNCH,
    )
    return out[:, :count], partials


def loss_of(partials: Tensor) -> Tensor:
    """Returns the loss, a scalar, from one launch's partials."""
    return partials[0].sum()


def metrics_of(partials: Sequence[Tensor]) -> dict[str, Tensor]:
    """Returns metric sums and maxima over the partials of some launches (at least one), in their order."""
    together = torch.cat(list(partials), dim=1)
    sums = together[: len(_SUMS)].sum(1).unbind()
    maxima = together[len(_SUMS) :].amax(1).unbind()
    return dict(zip(_SUMS[1:] + _MAXIMA, sums[1:] + maxima, strict=True))


def no_metrics(device: torch.device) -> dict[str, Tensor]:
    """Returns the metrics without any launch: every name, with value 0."""
    return {name: torch.zeros((), device=device) for name in _SUMS[1:] + _MAXIMA}


def _sequences(means: SequenceMeans) -> int:
    sums = means.mismatch if means.ratio is None else means.ratio
    assert sums is not None
    return sums.shape[1]


def _hyper_parameters(section: GrpoSection) -> dict[str, float | None]:
    """Returns the numeric hyper-parameters, None where their branch is not compiled."""
    return {
        "low": 1 - section.clip_low,
        "high": 1 + section.clip_high,
        "dual_clip": section.dual_clip,
        "kl_coefficient": section.kl_coefficient,
        "entropy_coefficient": section.entropy_coefficient or None,
        "cap": section.mismatch_cap,
        "lowest": 1 / section.mismatch_cap,
    }


def _modes(section: GrpoSection) -> dict[str, str | bool]:
    """Returns the compile-time branches of the kernel. In the loss, `k1` means k3, as in `algorithms/grpo.py`."""
    kl = "none"
    if section.kl_coefficient:
        kl = "reward" if section.kl_placement == "reward" else ("k2" if section.kl_estimator == "k2" else "k3")
    return {
        "OBJECTIVE": section.objective,
        "MISMATCH": "none" if section.mismatch == "none" else section.mismatch_mode,
        "KL": kl,
        "KL_IMPORTANCE": section.kl_importance,
    }
