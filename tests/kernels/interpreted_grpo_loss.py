"""The fused GRPO loss through the interpreter. Run by test_interpreted, in a process of its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from triton import knobs

from megatron_lwz.config.sections import GrpoSection
from megatron_lwz.kernels.grpo_loss import FusedGrpoLoss, TokenInputs, fused_grpo_loss
from megatron_lwz.kernels.linear_logprob.epilogue import combine
from tests.support import grpo_loss_cases as grid

CASES = grid.cases(120, cispo=14)
TOKENS = 150
TOKEN_LEVEL = [case for case in CASES if case.token_level]
EVERY = 4
"""Of so many cases one runs twice, and must repeat every bit: memory that nobody wrote shows in some of them."""


def statistics_of(given: grid.Problem) -> tuple[torch.Tensor, torch.Tensor]:
    logprob, entropy, _, _ = combine(given.shards)
    return logprob, entropy


def test_the_interpreter_is_on():
    assert knobs.runtime.interpret


def test_the_grid_covers_every_option():
    assert len(TOKEN_LEVEL) >= 60
    clip = [case for case in CASES if case.section.objective == "clip"]
    cispo = [case for case in CASES if case.section.objective == "cispo"]
    for name, choices in grid.CHOICES.items():
        if hasattr(CASES[0].section, name):
            assert {getattr(case.section, name) for case in clip} == set(choices), name
            if name not in ("dual_clip", "clip_low"):
                assert {getattr(case.section, name) for case in cispo} == set(choices), name
    assert {case.section.clip_low for case in cispo} == {1.0, 0.05}
    assert len({(case.token_level, case.old_is_policy) for case in cispo}) == 4
    for group in (TOKEN_LEVEL, [case for case in CASES if not case.token_level], CASES[::EVERY], TOKEN_LEVEL[::EVERY]):
        kinds = {(c.section.kl_coefficient, c.section.kl_estimator, c.section.kl_placement) for c in group}
        assert kinds == set(grid.CHOICES["kl"])
        assert {case.shards for case in group} == {1, 2, 4} and {case.spread for case in group} == {0.3, 12.0}


@pytest.mark.parametrize("index", range(len(TOKEN_LEVEL)))
def test_from_statistics_equals_the_definition(index):
    case = TOKEN_LEVEL[index]
    given = grid.problem(case, TOKENS, seed=index)
    found, logprob, entropy = grid.from_statistics(given, case.section, chunk=97)
    found.assert_equals(grid.expected(logprob, entropy, given, case.section))
    if index % EVERY == 0:
        again, _, _ = grid.from_statistics(given, case.section, chunk=97)
        again.assert_identical(found)


@pytest.mark.parametrize("index", range(len(CASES)))
def test_from_logprobs_equals_the_definition(index):
    case = CASES[index]
    given = grid.problem(case, TOKENS, seed=1000 + index)
    logprob, entropy = statistics_of(given)
    found = grid.from_logprobs(logprob, entropy, given, case.section)
    found.assert_equals(grid.expected(logprob, entropy, given, case.section))
    if index % EVERY == 0:
        grid.from_logprobs(logprob, entropy, given, case.section).assert_identical(found)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("mismatch", ["token", "sequence"])
@pytest.mark.parametrize("old_is_policy", [False, True])
def test_sequence_means_cross_context_parallel_ranks(ratio, mismatch, old_is_policy):
    section = GrpoSection(ratio=ratio, mismatch=mismatch, mismatch_cap=1.02, clip_low=0.01, clip_high=0.01)
    given = grid.problem(grid.Case(section, old_is_policy, False, 0.3, 1), 701, seed=3, sequences=40)
    logprob, entropy = statistics_of(given)
    shares = [torch.arange(len(logprob))[rank::2] for rank in range(2)]
    whole = grid.expected(logprob, entropy, given, section)
    outcomes = grid.over_ranks(
        lambda rows, context_sum: grid.from_logprobs(
            logprob[rows], entropy[rows], grid.split(given, rows), section, context_sum
        ),
        shares,
    )
    together = grid.Outcome(
        sum(outcome.loss for outcome in outcomes),
        torch.zeros_like(logprob).index_put((torch.cat(shares),), torch.cat([outcome.g for outcome in outcomes])),
        torch.zeros_like(logprob),
        {
            name: max(outcome.metrics[name] for outcome in outcomes)
            if name.endswith("/max")
            else sum(outcome.metrics[name] for outcome in outcomes)
            for name in whole.metrics
        },
    )
    together.assert_equals(whole)


def test_sequences_in_any_order_and_many_of_them():
    """More sequences than one program owns, ids unsorted, and a token count that is no multiple of a block."""
    section = GrpoSection(ratio="sequence", mismatch="sequence")
    given = grid.problem(grid.Case(section, False, False, 0.3, 1), 603, seed=5, sequences=70)
    shuffled = torch.randperm(603, generator=torch.Generator().manual_seed(2))
    given = grid.split(given, shuffled)
    logprob, entropy = statistics_of(given)
    found = grid.from_logprobs(logprob, entropy, given, section)
    found.assert_equals(grid.expected(logprob, entropy, given, section))


def test_on_policy_sequence_ratio_needs_no_mean():
    section = GrpoSection(ratio="sequence", mismatch="token")
    given = grid.problem(grid.Case(section, True, False, 0.3, 1), 50, seed=0)
    logprob, entropy = statistics_of(given)

    def refuse(sums: torch.Tensor) -> torch.Tensor:
        raise AssertionError("no sum over ranks is needed")

    found = grid.from_logprobs(logprob, entropy, given, section, refuse)
    found.assert_equals(grid.expected(logprob, entropy, given, section))
    assert section.is_token_level(old_is_policy=True) and not section.is_token_level(old_is_policy=False)


def test_nothing_but_padding():
    section = GrpoSection(ratio="sequence", mismatch="sequence", entropy_coefficient=0.1)
    empty = torch.zeros(7)
    inputs = TokenInputs(empty, empty, None, empty, empty)
    ids = torch.full((7,), -1)
    logprob = torch.full((7,), float("nan"), requires_grad=True)
    options = {"sequence_ids": ids, "sequences": 3, "context_sum": lambda sums: sums}
    loss, metrics = fused_grpo_loss(logprob, empty, inputs, section, **options)
    assert loss == 0 and all(value == 0 for value in metrics.values())
    assert (torch.autograd.grad(loss, logprob)[0] == 0).all()
    none = grid.mapped(inputs, lambda value: value[:0])
    options["sequence_ids"] = ids[:0]
    loss, metrics = fused_grpo_loss(empty[:0].requires_grad_(), empty[:0], none, section, **options)
    assert loss == 0 and all(value == 0 for value in metrics.values())


def test_metrics_have_every_name_before_the_first_call():
    section = GrpoSection()
    case = grid.Case(section, False, False, 0.3, 1)
    given = grid.problem(case, 20, seed=0)
    untouched = FusedGrpoLoss(given.inputs, section).metrics()
    assert all(value == 0 for value in untouched.values())
    assert set(untouched) == set(grid.expected(*statistics_of(given), given, section).metrics)


def test_small_divergences_keep_their_digits():
    """e^−d − 1 + d of a small d is nearly d²/2; in fp32 the plain formula has no digit left at d = 1e-4."""
    section = GrpoSection(kl_coefficient=1.0, kl_importance=False, mismatch="none")
    given = grid.problem(grid.Case(section, True, True, 0.3, 1), 64, seed=0)
    logprob, entropy = statistics_of(given)
    distance = 2.0 ** -torch.arange(64).fmod(16)
    reference = logprob.round()
    logprob = reference + distance
    inputs = dataclasses.replace(given.inputs, reference=reference, advantage=torch.zeros(64), weight=torch.ones(64))
    found = grid.from_logprobs(logprob, entropy, dataclasses.replace(given, inputs=inputs), section)
    exact = logprob.double() - reference.double()
    torch.testing.assert_close(found.g.double(), -torch.expm1(-exact), rtol=1e-6, atol=0)
    exact_kl = (torch.expm1(-exact) + exact).sum()
    torch.testing.assert_close(found.metrics["kl"].double(), exact_kl, rtol=1e-6, atol=0)


def test_what_cannot_run_is_refused():
    given = grid.problem(grid.Case(GrpoSection(), False, False, 0.3, 1), 20, seed=0)
    with pytest.raises(ValueError, match="reference"):
        FusedGrpoLoss(given.inputs, GrpoSection(kl_coefficient=0.1))
    for section in (GrpoSection(ratio="sequence"), GrpoSection(mismatch="sequence")):
        with pytest.raises(ValueError, match="sequence"):
            FusedGrpoLoss(given.inputs, section)
