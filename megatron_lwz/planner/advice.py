"""What to change first, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_lwz.config import Config
from megatron_lwz.planner.plan import Plan, Setting
from megatron_lwz.units import GIB

_LONG_ROLLOUT = 2.0
"""Rollouts that take so many times the training are what a run waits for."""
_SLOW_SYNC = 0.08
"""Share of a step from which on the weight sync is worth a sentence."""
_ROOM = 0.6
"""A card that is less full than this has room for larger packs."""


def advice(now: Plan, best: Plan | None, setting: Setting, config: Config) -> list[str]:
    """Returns the most important first."""
    found: list[str] = []
    if now.reason is not None:
        found.append(f"The config does not fit: {now.reason}.")
        found += _what_is_large(now)
    if best is None:
        found.append("No layout that was tried fits: use more GPUs, cards with more memory, or a smaller model.")
        return found
    if now.reason is not None or best.step_seconds() < 0.95 * now.step_seconds():
        found.append(f"Use {changes(best)}" + ("." if now.reason else _faster(now, best)))
    found += _waiting(best, setting, config)
    if best.seconds.get("weight sync", 0.0) > _SLOW_SYNC * best.step_seconds() and not config.rollout.colocated:
        found.append(
            "Weight sync by files is a large part of a step: set weight_sync.transport: nccl (engine vllm only)."
        )
    if best.peak < _ROOM * setting.card.memory:
        room = (setting.card.memory - best.peak) / GIB
        found.append(f"{room:,.0f} GiB of each card stay free: fewer GPUs may train as well.")
    return found


def changes(plan: Plan) -> str:
    """Returns the settings of a layout as they are written on a command line."""
    p, t = plan.config.parallel, plan.config.training
    sizes = f"parallel.tensor={p.tensor} parallel.context={p.context} parallel.pipeline={p.pipeline}"
    return f"{sizes} training.recompute={t.recompute} training.tokens_per_micro_batch={t.tokens_per_micro_batch}"


def _faster(now: Plan, best: Plan) -> str:
    return f": a step takes {best.step_seconds():,.0f} s in place of {now.step_seconds():,.0f} s (formula)."


def _what_is_large(plan: Plan) -> Sequence[str]:
    if not plan.ranks:
        return ()
    memory, instant = plan.worst
    parts = {**memory.report.state, "activations and workspace": plan.peak - memory.state}
    largest = max(parts, key=lambda name: parts[name])
    remedies = {
        "parameters": "raise parallel.tensor or parallel.pipeline",
        "gradients": "raise parallel.tensor or parallel.pipeline",
        "optimizer": "train on more GPUs, which share it, or raise parallel.tensor",
        "activations and workspace": "set training.recompute, or raise parallel.context",
    }
    size = f"{parts[largest] / GIB:,.1f} GiB"
    return (f"At the instant '{instant}' the largest part is {largest} ({size}): {remedies[largest]}.",)


def _waiting(plan: Plan, setting: Setting, config: Config) -> Sequence[str]:
    rollout, engines = plan.seconds.get("rollout", 0.0), setting.engines
    training = plan.training_seconds
    if engines is None or rollout < _LONG_ROLLOUT * training:
        return ()
    said = [f"The rollouts take {rollout / max(training, 1e-9):,.1f} times the training (formula)."]
    if not engines.colocated and not setting.embedded and not config.rollout.max_staleness:
        said.append(
            "Give engines more of the GPUs (--engine-gpus), or set rollout.max_staleness: 1, so that both work at once."
        )
    if (room := setting.slots) < (asked := config.rollout.concurrency):
        said.append(f"An engine has room for {room} rollouts at once, rollout.concurrency asks for {asked}.")
    return said
