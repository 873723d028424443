"""The fused GRPO loss on a GPU: equal to its definition in fp64 with 16k tokens, the same every time, without waiting."""

from __future__ import annotations

import pytest
import torch
from triton import knobs

from megatron_lwz.config.sections import GrpoSection
from megatron_lwz.kernels.grpo_loss import FusedGrpoLoss, fused_grpo_loss
from megatron_lwz.kernels.linear_logprob.epilogue import combine
from tests.support import grpo_loss_cases as grid

pytestmark = pytest.mark.gpu

TOKENS = 16384
CASES = grid.cases(24)
TOKEN_LEVEL = [case for case in CASES if case.token_level]


def test_kernels_are_compiled() -> None:
    assert not knobs.runtime.interpret


@pytest.mark.parametrize("index", range(len(TOKEN_LEVEL)))
def test_from_statistics_equals_the_definition(index: int) -> None:
    case = TOKEN_LEVEL[index]
    given = grid.problem(case, TOKENS, seed=index, sequences=64, device="cuda")
    found, logprob, entropy = grid.from_statistics(given, case.section, chunk=3000)
    found.assert_equals(grid.expected(logprob, entropy, given, case.section))
    again, _, _ = grid.from_statistics(given, case.section, chunk=3000)
    again.assert_identical(found)


@pytest.mark.parametrize("index", range(len(CASES)))
def test_from_logprobs_equals_the_definition(index: int) -> None:
    case = CASES[index]
    given = grid.problem(case, TOKENS, seed=100 + index, sequences=64, device="cuda")
    logprob, entropy, _, _ = combine(given.shards)
    found = grid.from_logprobs(logprob, entropy, given, case.section)
    found.assert_equals(grid.expected(logprob, entropy, given, case.section))
    grid.from_logprobs(logprob, entropy, given, case.section).assert_identical(found)


def test_many_sequences_in_any_order() -> None:
    section = GrpoSection(ratio="sequence", mismatch="sequence")
    given = grid.problem(grid.Case(section, False, False, 0.3, 8), TOKENS, seed=1, sequences=1024, device="cuda")
    given = grid.split(given, torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2)).cuda())
    logprob, entropy, _, _ = combine(given.shards)
    found = grid.from_logprobs(logprob, entropy, given, section)
    found.assert_equals(grid.expected(logprob, entropy, given, section))
    grid.from_logprobs(logprob, entropy, given, section).assert_identical(found)


def test_the_host_never_waits() -> None:
    section = GrpoSection(kl_coefficient=0.1, entropy_coefficient=0.01)
    given = grid.problem(grid.Case(section, False, True, 0.3, 2), TOKENS, seed=0, device="cuda")
    logprob, entropy, _, _ = combine(given.shards)
    logprob.requires_grad_()
    rows = torch.arange(TOKENS, device="cuda")
    options = {"sequence_ids": given.ids, "sequences": given.sequences, "context_sum": lambda sums: sums}

    def everything() -> None:
        fused = FusedGrpoLoss(given.inputs, section)
        fused(given.shards, rows)
        fused.metrics()
        for options_of_loss in (section, GrpoSection(ratio="sequence", mismatch="sequence")):
            loss, _ = fused_grpo_loss(logprob, entropy, given.inputs, options_of_loss, **options)
            loss.backward()

    everything()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")
