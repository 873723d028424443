"""One GRPO batch through the trainer's real update, on this launch's ranks, under several layouts (worker side)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from megatron_lwz.config import Config, validate
from megatron_lwz.distributed import launch
from megatron_lwz.training.grpo_batches import Update, prepare_updates
from megatron_lwz.training.grpo_objective import GrpoObjective
from megatron_lwz.training.grpo_update import PolicyUpdates
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.numerics_guard import NumericsGuard
from megatron_lwz.training.optimizer import parts
from megatron_lwz.training.reference import ReferenceWeights
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import AccumulatingStep, StepResult, forward_statistics
from megatron_lwz.types import SequenceBatch

ARCHITECTURE = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "initializer_range": 0.3,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "token": {"kl_coefficient": 0.1, "kl_estimator": "k3", "entropy_coefficient": 0.01, "clip_high": 0.28},
    "sequence": {"ratio": "sequence", "aggregation": "sequence", "mismatch": "sequence", "mismatch_mode": "mask"},
    "constant": {"aggregation": "constant", "constant_length": 64, "kl_coefficient": 0.1, "kl_placement": "reward"},
}
USER_LOSSES = "tests.support.user_losses"
SAME: dict[str, dict[str, Any]] = {
    "examples.custom.cispo:cispo": {"objective": "cispo", "clip_high": 0.1, "entropy_coefficient": 0.01},
    f"{USER_LOSSES}:sequence_cispo": {"objective": "cispo", "ratio": "sequence", "clip_high": 0.01},
    f"{USER_LOSSES}:gspo_through_the_mean": {"ratio": "sequence", "clip_high": 0.1, "mismatch": "none"},
}
"""A loss function of the user's own → the options of the same built-in loss."""
THROUGH_THE_MEAN = {"loss_function": f"{USER_LOSSES}:gspo_through_the_mean", "aggregation": "sequence"}


def updates(layouts: dict[str, dict[str, Any]], *, cap: int = 128) -> dict[str, list[dict[str, float]]]:
    """`layout/option` → metrics of four optimizer updates: two batches with two updates each."""
    found = {}
    for layout, parallel in layouts.items():
        for name, grpo in OPTIONS.items():
            config = validate(
                {
                    "model": {"architecture": ARCHITECTURE, "vocab_padding": 8},
                    "parallel": parallel,
                    "training": {"precision": "fp32", "tokens_per_micro_batch": cap, "updates_per_batch": 2},
                    "optimizer": {"lr": 1e-2},
                    "grpo": grpo,
                }
            )
            found[f"{layout}/{name}"] = _train(config)
    return found


def updates_and_loss_functions(layouts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """All in one launch. Faults with pipeline stages are looked for with virtual ones alone."""
    without_pp2 = {name: layout for name, layout in layouts.items() if name != "pp2"}
    return {"updates": updates(layouts), "loss_functions": loss_functions(layouts), "faults": faults(without_pp2)}


def loss_functions(layouts: dict[str, dict[str, Any]], *, cap: int = 128) -> dict[str, dict[str, float]]:
    """`layout/function` → how far a loss function's step is from the built-in one's, off policy and packed.

    `loss`: relative; `gradient`: the largest difference over the largest gradient; `smallest`: that gradient; `metrics`:
    relative, of those that both have; `own`: how many metrics are the function's.
    """
    found = {}
    for layout, parallel in layouts.items():
        base = {
            "model": {"architecture": ARCHITECTURE, "vocab_padding": 8},
            "parallel": parallel,
            "training": {"precision": "fp32", "tokens_per_micro_batch": cap},
        }
        launch.initialize(validate(base))
        state = build_train_state(validate(base))
        for path, options in SAME.items():
            around = {key: value for key, value in options.items() if key not in ("objective", "ratio")}
            (built_in, expected), (own, gradients) = (
                gradients_of(state, [_off_policy(state, config)], config, last=True)
                for config in (validate(base | {"grpo": grpo}) for grpo in (options, around | {"loss_function": path}))
            )
            scale = max(float(gradient.abs().max()) for gradient in expected)
            pairs = zip(gradients, expected, strict=True)
            both = (set(built_in.metrics) & set(own.metrics)) - {"ratio", "ratio/max"}
            found[f"{layout}/{path}"] = {
                "loss": abs(own.loss / built_in.loss - 1),
                "gradient": max(float((a - b).abs().max()) for a, b in pairs) / scale,
                "smallest": scale,
                "metrics": max(abs(own.metrics[k] - built_in.metrics[k]) / (1 + abs(own.metrics[k])) for k in both),
                "own": sum(name.startswith("loss/") and value > 0 for name, value in own.metrics.items()),
            }
    return found


def gradients_of(
    state: TrainState, updates: Iterable[Update], config: Config, *, last: bool
) -> tuple[StepResult, list[torch.Tensor]]:
    """A step that is refused at its end, and the reduced, divided gradients that it had: this rank's shards.

    The updates are the step's parts; `last`: there is only one. Without it the reduction begins when the step is finished.
    """
    step, denominator = AccumulatingStep(state), 0
    for update in updates:
        objective = GrpoObjective(config.grpo, update.sequences, update.old, update.reference)
        step.add(update.micro_batches, objective.loss, objective.token_loss, last=last)
        denominator += update.denominator
    result = step.finish(denominator, accept=lambda _: False)
    shards = (group["params"] for part in parts(state.optimizer) for group in part.optimizer.param_groups)
    return result, [parameter.grad.clone() for params in shards for parameter in params]


def _off_policy(state: TrainState, config: Config) -> Update:
    """One update whose old log-probs are not the policy's."""
    (update,) = prepare_updates(state, make_batch(0), config, None)
    statistics = forward_statistics(state, update.micro_batches)
    if statistics is None:
        return update
    old = [
        values[0] + 0.2 * torch.sin(micro.positions * 1.0)
        for values, micro in zip(statistics, update.micro_batches, strict=True)
    ]
    return replace(update, old=old)


def faults(layouts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`layout/kind` → what happens to an update with a number in it that is not finite, and to the one after it."""
    found = {}
    for layout, parallel in layouts.items():
        for kind, precision in (("loss", "fp32"), ("gradient", "bf16")):
            base: dict[str, Any] = {
                "model": {"architecture": ARCHITECTURE, "vocab_padding": 8},
                "parallel": parallel,
                "training": {"precision": precision, "tokens_per_micro_batch": 64},
                "optimizer": {"lr": 1e-2},
                "grpo": {"loss_function": f"{USER_LOSSES}:endless_slope"} if kind == "gradient" else {},
            }
            found[f"{layout}/{kind}"] = _fault(validate(base), kind)
    return found


def _fault(config: Config, kind: str) -> dict[str, Any]:
    """An update whose sequence 7 is bad. Sequence 5 has weight 0, so 7 is the seventh that is trained on."""
    launch.initialize(config)
    state, guard = build_train_state(config), NumericsGuard(config)
    batch = make_batch(0)
    if kind == "loss":
        batch.behaviour_logprobs[batch.offsets[7] : batch.offsets[8]] = torch.nan
    else:
        batch.advantages[7] = 100.0
    before = [tensor.clone() for tensor in _trained(state)]
    names = [f"{number // 4}-{number % 4}" for number in range(12)]
    rows = []
    for step, trained in enumerate((batch, make_batch(1)), start=1):
        updates = PolicyUpdates(state, config, guard)
        updates.add(prepare_updates(state, trained, config, None, names), last=True)
        rows += updates.finish()
        state.step = step
        if step == 1:
            same = all(torch.equal(a, b) for a, b in zip(before, _trained(state), strict=True))
            told, saves = guard._fault, guard.saves(state, due=True)
            guard.end_step(step, lambda: None)
    moved = not all(torch.equal(a, b) for a, b in zip(before, _trained(state), strict=True))
    rows = [{name: row[name] for name in ("loss", "grad_norm")} for row in rows]
    return {"rows": rows, "same": same, "told": told, "saves": saves, "moved": moved, "state": guard.state()}


def _trained(state: TrainState) -> list[torch.Tensor]:
    """Weights, masters and moments: all that an update changes in place."""
    optimizers = [part.optimizer for part in parts(state.optimizer)]
    masters = [weight.data for one in optimizers for group in one.param_groups for weight in group["params"]]
    moments = [value for one in optimizers for entry in one.state.values() for value in entry.values()]
    return [weight.data for policy in state.policies for weight in policy.parameters()] + masters + moments


def _train(config: Config) -> list[dict[str, float]]:
    launch.initialize(config)
    state = build_train_state(config)
    reference = ReferenceWeights(state) if config.grpo.kl_coefficient > 0 else None
    rows = []
    for step in range(2):
        updates = PolicyUpdates(state, config)
        updates.add(prepare_updates(state, make_batch(step), config, reference), last=True)
        rows += updates.finish()
    return rows


def make_batch(seed: int) -> SequenceBatch:
    """Twelve sequences of 12 to 60 tokens; one of them masked; behaviour log-probs near a uniform policy's."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(12, 60, (12,), generator=random)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    total = int(offsets[-1])
    weights = torch.ones(12)
    weights[5] = 0
    return SequenceBatch(
        tokens=torch.randint(0, 101, (total,), generator=random),
        offsets=offsets,
        prompt_lengths=torch.randint(1, 8, (12,), generator=random),
        behaviour_logprobs=-4.6 + 0.3 * torch.randn(total, generator=random),
        advantages=torch.randn(12, generator=random),
        weights=weights,
    )


def check_loss_function(found: dict[str, float], path: str) -> None:
    """A step with a function of the user's own is the built-in one. A gradient through means adds up in another order."""
    assert found["smallest"] > 1e-3, found
    assert found["loss"] < 1e-6 and found["metrics"] < 1e-6, found
    assert found["gradient"] < (1e-5 if path.endswith("through_the_mean") else 1e-6), found
