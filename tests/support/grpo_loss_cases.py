"""Random problems and options for the fused GRPO loss, and its comparison with `algorithms/grpo.py` in fp64.

Used through Triton's interpreter (tests/kernels) and on a GPU (tests/gpu); where Triton is imported decides which.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lwz.algorithms.grpo import LossInputs, grpo_loss
from megatron_lwz.config.sections import GrpoSection
from megatron_lwz.kernels.grpo_loss import FusedGrpoLoss, TokenInputs, fused_grpo_loss
from megatron_lwz.kernels.linear_logprob.epilogue import combine, empty_statistics

CHOICES = {
    "clip_low": [0.2, 0.05],
    "clip_high": [0.2, 0.35],
    "dual_clip": [None, 2.5],
    "kl": [(0.0, "k3", "loss"), (0.2, "k2", "loss"), (0.2, "k3", "loss"), (0.3, "k1", "reward")],
    "kl_importance": [True, False],
    "ratio": ["token", "sequence"],
    "mismatch": ["none", "token", "sequence"],
    "mismatch_mode": ["truncate", "mask"],
    "mismatch_cap": [2.0, 1.1],
    "entropy_coefficient": [0.0, 0.03],
    "old_is_policy": [False, True],
    "with_reference": [True, False],
    "spread": [0.3, 12.0],
    "shards": [1, 2, 4],
}
"""`spread` is the standard deviation of the log-ratios: 12 passes the limit of 20 on some tokens."""

TOLERANCE = 1e-5
"""Relative: what is left between fp32 and fp64 when both start from the same fp32 log-probs."""


@dataclass(frozen=True)
class Case:
    """One combination of options."""

    section: GrpoSection
    old_is_policy: bool
    with_reference: bool
    spread: float
    shards: int

    @property
    def token_level(self) -> bool:
        return self.section.mismatch != "sequence" and (self.section.ratio == "token" or self.old_is_policy)


def cases(count: int, cispo: int = 8) -> list[Case]:
    """`count` different combinations, the same ones every time, and `cispo` of CISPO.

    Every value of every option is among the former; the latter have no lower bound in place of `clip_low` 0.2.
    """
    combinations = list(itertools.product(*CHOICES.values()))
    drawn = [(values, "clip") for values in random.Random(7).sample(combinations, count)]
    drawn += [(values, "cispo") for values in random.Random(8).sample(combinations, cispo)]
    chosen = []
    for values, objective in drawn:
        options = dict(zip(CHOICES, values, strict=True)) | {"objective": objective}
        if objective == "cispo":
            options |= {"dual_clip": None, "clip_low": 1.0 if options["clip_low"] == 0.2 else options["clip_low"]}
        options["kl_coefficient"], options["kl_estimator"], options["kl_placement"] = options.pop("kl")
        rest = {name: options.pop(name) for name in ("old_is_policy", "with_reference", "spread", "shards")}
        rest["with_reference"] |= options["kl_coefficient"] > 0
        chosen.append(Case(GrpoSection(**options), **rest))
    return chosen


@dataclass(frozen=True)
class Problem:
    """Statistics [R, 4, T] and the tensors of the loss, sequences of uneven length in packed order."""

    shards: Tensor
    inputs: TokenInputs
    ids: Tensor
    sequences: int


def problem(case: Case, tokens: int, *, seed: int, sequences: int = 5, device: str = "cpu") -> Problem:
    """A third of the tokens has weight 0, the last three are padding, one sequence has no token at all."""
    generator = torch.Generator().manual_seed(seed)

    def noise(spread: float) -> Tensor:
        """Log-ratios, none of them within 1e-3 of a value where a branch of the loss begins."""
        options = case.section
        edges = [1 - options.clip_low, 1 + options.clip_high, options.dual_clip or 1e6]
        edges += [options.mismatch_cap, 1 / options.mismatch_cap, math.exp(20), math.exp(-20)]
        drawn = torch.randn(tokens, generator=generator) * spread
        for edge in edges:
            if edge > 0:
                drawn[(drawn - math.log(edge)).abs() < 1e-3] += 2e-3
        return drawn

    logits = torch.randn(tokens, 40, generator=generator).double() * 3
    labels = torch.randint(0, 40, (tokens,), generator=generator)
    shards = statistics(logits, labels, case.shards)
    policy = combine(shards.double())[0].float()
    old = policy - noise(case.spread)
    ids = torch.randint(0, sequences - 1, (tokens,), generator=generator).sort().values
    ids[-3:] = -1
    weight = torch.rand(sequences, generator=generator)[ids] + 0.1
    weight[torch.rand(tokens, generator=generator) < 0.3] = 0
    weight[-3:] = 0
    inputs = TokenInputs(
        old=None if case.old_is_policy else old,
        behaviour=(policy if case.old_is_policy else old) - noise(case.spread / 3),
        reference=policy - noise(case.spread) if case.with_reference else None,
        advantage=torch.randn(sequences, generator=generator)[ids],
        weight=weight,
    )
    found = Problem(shards, inputs, ids, sequences)
    return dataclasses.replace(
        found, shards=shards.to(device), ids=ids.to(device), inputs=mapped(inputs, lambda value: value.to(device))
    )


def statistics(logits: Tensor, labels: Tensor, shards: int) -> Tensor:
    """[R, 4, T] fp32 of the columns of `logits` [T, V] over R shards; of four, the last has no column."""
    filled = 3 if shards == 4 else shards
    found = []
    for z, first in zip(logits.chunk(filled, dim=1), itertools.count(0, -(-logits.shape[1] // filled)), strict=False):
        m = z.amax(1)
        e = (z - m[:, None]).exp()
        column = labels - first
        own = (column >= 0) & (column < z.shape[1])
        chosen = z.gather(1, column.clamp(0, z.shape[1] - 1)[:, None])[:, 0] * own
        found.append(torch.stack([m, e.sum(1), (e * (z - m[:, None])).sum(1), chosen]).float())
    found += [empty_statistics(len(logits), dtype=torch.float32, device=logits.device)] * (shards - filled)
    return torch.stack(found)


def mapped(inputs: TokenInputs, change) -> TokenInputs:
    """`change` applied to every tensor."""
    return TokenInputs(**{k: None if v is None else change(v) for k, v in vars(inputs).items()})


@dataclass(frozen=True)
class Outcome:
    """Loss, gradients in log-prob and entropy [T], metrics."""

    loss: Tensor
    g: Tensor
    h: Tensor
    metrics: dict[str, Tensor]

    def assert_equals(self, expected: Outcome) -> None:
        """Within TOLERANCE of the largest gradient and of each sum; counts exactly."""
        assert set(self.metrics) == set(expected.metrics)
        for ours, theirs in ((self.g, expected.g), (self.h, expected.h)):
            assert (ours[theirs == 0] == 0).all(), "a token without gradient must get exactly 0"
            torch.testing.assert_close(ours.double(), theirs, rtol=TOLERANCE, atol=TOLERANCE)
        for name in self.metrics:
            exact = name == "tokens" or "clip" in name
            rtol = 0 if exact else TOLERANCE
            torch.testing.assert_close(
                self.metrics[name].double(),
                expected.metrics[name].double(),
                rtol=rtol,
                atol=rtol,
                msg=lambda text, name=name: f"{name}: {text}",
            )
        torch.testing.assert_close(self.loss.double(), expected.loss, rtol=TOLERANCE, atol=1e-4)

    def assert_identical(self, other: Outcome) -> None:
        """Bit for bit."""
        assert torch.equal(self.loss, other.loss) and torch.equal(self.g, other.g) and torch.equal(self.h, other.h)
        assert all(torch.equal(value, other.metrics[name]) for name, value in self.metrics.items())


def expected(logprob: Tensor, entropy: Tensor, given: Problem, section: GrpoSection, context_sum=None) -> Outcome:
    """`algorithms/grpo.py` in fp64, differentiated by autograd."""
    logprob, entropy = (value.double().requires_grad_() for value in (logprob, entropy))
    values = vars(mapped(given.inputs, Tensor.double))
    old = logprob.detach() if values["old"] is None else values["old"]
    inputs = LossInputs(
        logprob=logprob,
        entropy=entropy,
        **(values | {"old": old}),
        sequence_ids=given.ids,
        sequences=given.sequences,
    )
    loss, metrics = grpo_loss(inputs, section, context_sum=context_sum or (lambda sums: sums))
    g, h = torch.autograd.grad(loss, (logprob, entropy), allow_unused=True, materialize_grads=True)
    return Outcome(loss.detach(), g, h, {name: value.detach() for name, value in metrics.items()})


def from_statistics(given: Problem, section: GrpoSection, chunk: int) -> tuple[Outcome, Tensor, Tensor]:
    """`FusedGrpoLoss` over shuffled chunks of `chunk` rows with padding rows among them; log-prob, entropy [T] too."""
    tokens = given.shards.shape[-1]
    fused = FusedGrpoLoss(given.inputs, section)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(1)).to(given.shards.device)
    out = given.shards.new_zeros(4, tokens + 1)
    loss = given.shards.new_zeros(())
    for part in order.split(chunk):
        rows = torch.cat([part.new_full((2,), tokens), part, part.new_full((1,), tokens)])
        step = fused(given.shards[:, :, rows.clamp(max=tokens - 1)], rows)
        h = step.gradients.entropy
        h = torch.zeros_like(step.logprob) if h is None else h
        out[:, rows] = torch.stack([step.logprob, step.entropy, step.gradients.logprob, h])
        padding = rows == tokens
        assert (step.gradients.logprob[padding] == 0).all() and (h[padding] == 0).all()
        exact = combine(given.shards[:, :, rows.clamp(max=tokens - 1)].double())
        found = (step.logprob, step.entropy, step.lse, step.gradients.mean)
        for ours, theirs in zip(found, exact, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5)
        loss += step.loss
    logprob, entropy, g, h = out[:, :-1]
    return Outcome(loss, g, h, fused.metrics()), logprob, entropy


def from_logprobs(logprob: Tensor, entropy: Tensor, given: Problem, section: GrpoSection, context_sum=None) -> Outcome:
    """`fused_grpo_loss`, differentiated by autograd."""
    logprob, entropy = (value.detach().requires_grad_() for value in (logprob, entropy))
    loss, metrics = fused_grpo_loss(
        logprob,
        entropy,
        given.inputs,
        section,
        sequence_ids=given.ids,
        sequences=given.sequences,
        context_sum=context_sum or (lambda sums: sums),
    )
    g, h = torch.autograd.grad(loss, (logprob, entropy), allow_unused=True, materialize_grads=True)
    return Outcome(loss.detach(), g, h, metrics)


def split(given: Problem, rows: Tensor) -> Problem:
    """One simulated context-parallel rank's share."""
    return Problem(
        given.shards[:, :, rows], mapped(given.inputs, lambda value: value[rows]), given.ids[rows], given.sequences
    )


def over_ranks(run, parts: list) -> list[Outcome]:
    """`run(part, context_sum)` for every rank; `context_sum` adds what all ranks put in. Runs twice: post, then read."""
    posted: list[list[Tensor]] = [[] for _ in parts]
    for mine, part in zip(posted, parts, strict=True):
        run(part, lambda sums, mine=mine: mine.append(sums.clone()) or sums)
    totals = [sum(sums) for sums in zip(*posted, strict=True)]
    outcomes = []
    for part in parts:
        answers = iter(totals)
        outcomes.append(run(part, lambda sums, answers=answers: next(answers)))
        assert next(answers, None) is None, "every rank must call context_sum equally often"
    return outcomes
