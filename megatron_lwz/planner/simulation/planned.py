"""The numbers of a simulation from a plan: `lwz plan`'s formulas and rehearsals, nothing measured."""

from __future__ import annotations

from megatron_lwz.config import Config
from megatron_lwz.errors import LwzError
from megatron_lwz.planner import plan
from megatron_lwz.planner.assumptions import ASSUMED
from megatron_lwz.planner.engines import Engines as PlannedEngines
from megatron_lwz.planner.engines import parameters
from megatron_lwz.planner.rehearsals import Rehearsals
from megatron_lwz.planner.simulation.engine import Decoding
from megatron_lwz.planner.simulation.lengths import Drawn
from megatron_lwz.planner.simulation.numbers import Numbers, load_share, share_said, weight_sync
from megatron_lwz.planner.simulation.pool import Engines
from megatron_lwz.planner.simulation.setting import Trainer


def planned(config: Config, trainers: int, setting: plan.Setting, lengths: Drawn, rehearsals: Rehearsals) -> Numbers:
    """Returns the numbers of a run that trains on `trainers` GPUs. Raises LwzError where the layout is refused."""
    found = plan.make_plan(config, trainers, setting, rehearsals)
    if setting.engines is None or not found.seconds:
        raise LwzError(f"no plan for {trainers} GPUs that train: {found.reason}")
    passes = found.seconds["forward and backward"] + found.seconds.get("log-probs", 0.0)
    fits = "" if found.reason is None else f", which does not fit ({found.reason})"
    return Numbers(
        lengths,
        planned_engines(setting.engines, lengths),
        Trainer(passes / setting.work.tokens, found.seconds["optimizer"]),
        weight_sync(found.seconds["weight sync"], load_share(config)),
        rewards=0.0,
        sources={
            "decoding": f"plan, {setting.card.name}",
            "training": f"plan, {found.layout} of {trainers} GPUs{fits}",
            "weight sync": f"plan, engines on hold in {share_said(config)}",
            "rewards": "assumed, no time",
        },
    )


def planned_engines(engines: PlannedEngines, lengths: Drawn) -> Engines:
    """Returns the planned engines, whose decode step is a straight line between one stream and all slots."""
    slots = engines.at_once(lengths.context)
    if slots < 1 or engines.cached_tokens < engines.longest:
        raise LwzError(f"an engine of {engines.tensor} GPUs has no room for a rollout: set --engine-tensor")
    alone, full = (engines.step_seconds(rows, lengths.context) for rows in (1, slots))
    per_stream = (full - alone) / (slots - 1) if slots > 1 else 0.0
    flops = engines.card.bf16_tflops * 1e12 * ASSUMED.matrix_share.value * engines.tensor
    prefill = flops / (2 * parameters(engines.arch))
    return Engines(engines.count, slots, Decoding(alone - per_stream, per_stream), prefill)
