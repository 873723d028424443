"""The GRPO loss against hand-written formulas, autograd, and itself split over context-parallel ranks."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from megatron_lwz.algorithms.grpo import LossInputs, average_metrics, grpo_loss, token_weights
from megatron_lwz.config.sections import GrpoSection
from megatron_lwz.types import SequenceBatch
from tests.unit.algorithms.loss_inputs import LENGTHS, inputs


def section(**options) -> GrpoSection:
    return GrpoSection(**({"mismatch": "none"} | options))


def loss_of(data: LossInputs, options: GrpoSection, context_sum=lambda t: t):
    return grpo_loss(data, options, context_sum=context_sum)


def gradient(data: LossInputs, options: GrpoSection) -> torch.Tensor:
    return torch.autograd.grad(loss_of(data, options)[0], data.logprob)[0]


def test_clip_is_asymmetric():
    data = inputs()
    ratio = (data.logprob - data.old).exp()
    expected = -torch.minimum(ratio * data.advantage, ratio.clamp(0.9, 1.3) * data.advantage)
    loss, metrics = loss_of(data, section(clip_low=0.1, clip_high=0.3))
    torch.testing.assert_close(loss, (expected * data.weight).sum())
    used = data.weight > 0
    assert metrics["clip_fraction_low"] == (used & (ratio < 0.9) & (data.advantage < 0)).sum()
    assert metrics["clip_fraction_high"] == (used & (ratio > 1.3) & (data.advantage > 0)).sum()
    assert metrics["tokens"] == sum(LENGTHS)


def test_clipped_tokens_have_no_gradient():
    data = inputs(spread=1.0)
    ratio = (data.logprob - data.old).exp().detach()
    clipped = ((ratio > 1.2) & (data.advantage > 0)) | ((ratio < 0.8) & (data.advantage < 0))
    found = gradient(data, section())
    assert clipped.any() and (found[clipped] == 0).all()
    free = ~clipped & (data.weight > 0)
    torch.testing.assert_close(found[free], (-ratio * data.advantage)[free])


def test_on_policy_gradient_is_the_policy_gradient():
    data = inputs()
    data = dataclasses.replace(data, old=data.logprob.detach())
    for ratio, objective in itertools.product(("token", "sequence"), ("clip", "cispo")):
        options = section(ratio=ratio, objective=objective)
        torch.testing.assert_close(gradient(data, options), -data.advantage * data.weight)


def test_cispo_weights_every_token_by_its_clipped_ratio():
    """No lower bound with clip_low 1, and no token without gradient but those of advantage 0."""
    data = inputs(spread=1.0)
    ratio = (data.logprob - data.old).exp().detach()
    for low, bound in ((0.1, 0.9), (1.0, 0.0)):
        options = section(objective="cispo", clip_low=low, clip_high=0.3)
        expected = -ratio.clamp(bound, 1.3) * data.advantage * data.weight
        torch.testing.assert_close(gradient(data, options), expected)
        loss, metrics = loss_of(data, options)
        torch.testing.assert_close(loss, (expected * data.logprob).sum())
        used = data.weight > 0
        assert metrics["clip_fraction_low"] == (used & (ratio < bound)).sum()
        assert metrics["clip_fraction_high"] == (used & (ratio > 1.3)).sum() > 0
        assert expected[used].all()


def test_cispo_of_a_sequence_ratio_gives_a_sequence_one_weight():
    data = inputs(spread=0.5)
    used, expected = data.weight > 0, torch.zeros(len(data.old))
    for i in range(len(LENGTHS)):
        rows = (data.sequence_ids == i) & used
        weight = (data.logprob - data.old).detach()[rows].mean().exp().clamp(0.98, 1.02)
        expected[rows] = -weight * data.advantage[rows]
    options = section(objective="cispo", ratio="sequence", clip_low=0.02, clip_high=0.02)
    torch.testing.assert_close(gradient(data, options), expected)


def test_dual_clip_bounds_the_loss_of_negative_advantages():
    data = inputs(spread=2.0)
    data = dataclasses.replace(data, advantage=-torch.ones_like(data.old))
    ratio = (data.logprob - data.old).exp()
    loss, _ = loss_of(data, section(dual_clip=3.0))
    torch.testing.assert_close(loss, (ratio.clamp(0.8, 3.0) * data.weight).sum())
    assert (ratio > 3).any()
    positive = dataclasses.replace(data, advantage=torch.ones_like(data.old))
    assert loss_of(positive, section(dual_clip=3.0))[0] == loss_of(positive, section())[0]


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_in_the_loss(estimator):
    data = dataclasses.replace(inputs(), advantage=torch.zeros(sum(LENGTHS) + 9))
    d = data.logprob - data.reference
    kl = d.square() / 2 if estimator == "k2" else (-d).exp() - 1 + d
    options = section(kl_coefficient=0.5, kl_estimator=estimator, kl_importance=False)
    torch.testing.assert_close(loss_of(data, options)[0], 0.5 * (kl * data.weight).sum())


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_importance_weighted_kl_has_the_gradient_of_the_reverse_kl_off_policy(estimator):
    """Exact expectation over a small vocabulary: tokens from `old`, gradient of KL(policy ‖ reference)."""
    torch.manual_seed(0)
    scores = torch.randn(6, dtype=torch.float64, requires_grad=True)
    old, reference = (torch.randn(6, dtype=torch.float64).log_softmax(0) for _ in range(2))
    logprob = scores.log_softmax(0)
    exact = torch.autograd.grad((logprob.exp() * (logprob - reference)).sum(), scores, retain_graph=True)[0]
    data = LossInputs(
        logprob=logprob,
        entropy=torch.zeros(6),
        old=old,
        behaviour=old,
        reference=reference,
        advantage=torch.zeros(6),
        weight=old.exp(),
        sequence_ids=torch.zeros(6, dtype=torch.int64),
        sequences=1,
    )
    loss, _ = loss_of(data, section(kl_coefficient=1.0, kl_estimator=estimator))
    torch.testing.assert_close(torch.autograd.grad(loss, scores)[0], exact)


def test_kl_on_the_reward_side_lowers_the_advantage():
    data = inputs()
    options = section(kl_coefficient=0.3, kl_placement="reward", kl_estimator="k1")
    lowered = dataclasses.replace(data, advantage=data.advantage - 0.3 * (data.old - data.reference))
    assert loss_of(data, options)[0] == loss_of(lowered, section())[0]


def test_coefficient_zero_needs_no_reference():
    data = inputs(reference=None)
    loss, metrics = loss_of(data, section())
    assert loss.isfinite() and metrics["kl"] > 0
    with pytest.raises(ValueError, match="reference"):
        loss_of(data, section(kl_coefficient=0.1))


def test_entropy_bonus():
    data = inputs()
    difference = loss_of(data, section(entropy_coefficient=0.1))[0] - loss_of(data, section())[0]
    torch.testing.assert_close(difference, -0.1 * (data.entropy * data.weight).sum())


def test_sequence_ratio_is_the_geometric_mean():
    """Value, and the gradient of Σ_i |o_i| · s_i(θ) A_i written out with the mean inside the graph (GSPO)."""
    data = inputs(spread=0.05)
    s = []
    for i in range(len(LENGTHS)):
        rows = (data.sequence_ids == i) & (data.weight > 0)
        s.append(LENGTHS[i] * (data.logprob - data.old)[rows].mean().exp() * -data.advantage[rows][0])
    expected = torch.stack(s).sum()
    options = section(ratio="sequence", clip_low=0.9, clip_high=9)
    torch.testing.assert_close(loss_of(data, options)[0], expected)
    torch.testing.assert_close(gradient(data, options), torch.autograd.grad(expected, data.logprob)[0])


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_mismatch_weights(level, mode):
    data = dataclasses.replace(inputs(spread=1.0), advantage=torch.ones(sum(LENGTHS) + 9))
    data = dataclasses.replace(data, old=data.logprob.detach())
    log_weight = data.old - data.behaviour
    if level == "sequence":
        for i in range(len(LENGTHS)):
            rows = (data.sequence_ids == i) & (data.weight > 0)
            log_weight = log_weight.where(~rows, log_weight[rows].mean())
    w = log_weight.exp()
    touched = w > 1.3 if mode == "truncate" else (w > 1.3) | (w < 1 / 1.3)
    expected = w.clamp(max=1.3) if mode == "truncate" else w * ~touched
    options = section(mismatch=level, mismatch_mode=mode, mismatch_cap=1.3)
    torch.testing.assert_close(gradient(data, options), -expected * data.weight)
    _, metrics = loss_of(data, options)
    used = data.weight > 0
    assert metrics["mismatch/clipped"] == (touched & used).sum()
    torch.testing.assert_close(metrics["mismatch/weight"], expected[used].sum())


OPTIONS = [
    section(ratio="sequence", mismatch="sequence", kl_coefficient=0.1, entropy_coefficient=0.01),
    section(mismatch="sequence", mismatch_mode="mask", mismatch_cap=1.1),
    section(ratio="sequence", mismatch="token", clip_low=0.01, clip_high=0.01),
    section(objective="cispo", ratio="sequence", clip_low=0.01, clip_high=0.01),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_loss_is_invariant_to_the_context_parallel_split(options):
    """Two simulated ranks hold alternating tokens; `context_sum` adds what both put in."""
    data = inputs()
    whole, totals = loss_of(data, options)
    expected = torch.autograd.grad(whole, data.logprob)[0]
    halves = [torch.arange(len(data.old))[rank::2] for rank in range(2)]

    def part(rows):
        return dataclasses.replace(data, **{k: v[rows] for k, v in vars(data).items() if isinstance(v, torch.Tensor)})

    posted: list[list[torch.Tensor]] = [[], []]
    for rank, rows in enumerate(halves):
        loss_of(part(rows), options, lambda t, rank=rank: posted[rank].append(t) or t)
    losses, sums = [], []
    for rows in halves:
        answers = iter([a + b for a, b in zip(*posted, strict=True)])
        loss, metrics = loss_of(part(rows), options, lambda t, answers=answers: next(answers))
        losses.append(loss)
        sums.append(metrics)
    torch.testing.assert_close(sum(losses), whole)
    torch.testing.assert_close(torch.autograd.grad(sum(losses), data.logprob)[0], expected)
    for name, value in totals.items():
        both = torch.stack([s[name] for s in sums])
        torch.testing.assert_close(both.amax() if name.endswith("/max") else both.sum(), value)


def test_loss_is_invariant_to_packing():
    options = section(ratio="sequence", mismatch="sequence", kl_coefficient=0.1)
    data = inputs()
    whole, _ = loss_of(data, options)
    parts = []
    for i in range(len(LENGTHS)):
        rows = data.sequence_ids == i
        parts.append(
            loss_of(
                dataclasses.replace(data, **{k: v[rows] for k, v in vars(data).items() if isinstance(v, torch.Tensor)}),
                options,
            )[0]
        )
    torch.testing.assert_close(sum(parts), whole)


def test_extreme_log_ratios_stay_finite():
    data = inputs(spread=200.0)
    options = section(
        ratio="token", mismatch="token", kl_coefficient=0.1, clip_high=0.3, entropy_coefficient=0.1, dual_clip=3.0
    )
    loss, metrics = loss_of(data, options)
    assert loss.isfinite() and torch.autograd.grad(loss, data.logprob)[0].isfinite().all()
    assert all(v.isfinite() for name, v in metrics.items())


def test_padding_only():
    data = inputs(lengths=(), sequences=3)
    loss, metrics = loss_of(data, section(ratio="sequence", mismatch="sequence"))
    assert loss == 0 and all(value == 0 for value in metrics.values())
    assert (torch.autograd.grad(loss, data.logprob)[0] == 0).all()
    assert set(metrics) == set(loss_of(inputs(), section())[1]), "every call must return the same names"


def sequence_batch(weights):
    lengths = torch.tensor([5, 7, 4])
    return SequenceBatch(
        tokens=torch.arange(16),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        prompt_lengths=torch.tensor([2, 2, 2]),
        behaviour_logprobs=torch.zeros(16),
        advantages=torch.zeros(3),
        weights=torch.tensor(weights),
    )


def test_aggregations():
    torch.manual_seed(0)
    values = torch.rand(16)
    responses = [values[2:5], values[7:12], values[14:16]]
    expected = {
        "token": torch.cat(responses[:2]).mean(),
        "sequence": torch.stack([r.mean() for r in responses[:2]]).mean(),
        "constant": torch.stack([r.sum() / 50 for r in responses[:2]]).mean(),
    }
    for aggregation, value in expected.items():
        weights, denominator = token_weights(
            sequence_batch([1.0, 1.0, 0.0]), section(aggregation=aggregation, constant_length=50)
        )
        assert weights.dtype == torch.float32
        torch.testing.assert_close((weights * values).sum() / denominator, value)


def test_dropped_sequences_add_nothing_to_the_denominator():
    weights, denominator = token_weights(sequence_batch([0.0, 0.0, 0.0]), section())
    assert (weights == 0).all() and denominator == 0


def test_average_metrics():
    assert average_metrics({"tokens": 4.0, "kl": 2.0, "ratio/max": 3.0}) == {"tokens": 4.0, "kl": 0.5, "ratio/max": 3.0}
