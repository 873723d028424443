"""One layout of a config on a card: what its ranks need at every instant, and how long a step takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from megatron_lwz.config import Config, Stage
from megatron_lwz.errors import ConfigError
from megatron_lwz.planner.assumptions import ASSUMED
from megatron_lwz.planner.dry_run import Memory, case_of, check, rank_kinds
from megatron_lwz.planner.engines import Engines
from megatron_lwz.planner.hardware import Gpu
from megatron_lwz.planner.rehearsals import Rehearsals
from megatron_lwz.planner.timing import Layout, Work, layout_of, seconds_of
from megatron_lwz.planner.transfers import Route, of_transport
from megatron_lwz.units import GIB, MIB


@dataclass(frozen=True)
class Setting:
    """What a plan is for."""

    stage: Stage
    card: Gpu
    work: Work
    engines: Engines | None = None
    """None: the stage has none."""
    embedded: bool = False
    """Whether the engine is a process on the first trainer GPU."""

    @property
    def slots(self) -> int:
        """Rollouts that an engine writes at once; 0 without engines."""
        prompt = ASSUMED.prompt_tokens.value
        return self.engines.slots(self.work.mean - prompt, prompt) if self.engines else 0


@dataclass(frozen=True)
class Plan:
    """A layout, and whether it fits."""

    config: Config
    layout: Layout
    ranks: tuple[Memory, ...] = ()
    instants: tuple[dict[str, int], ...] = ()
    """Bytes on the card at each instant, of each of `ranks`; with those of an engine that shares it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Phase → seconds of a step."""
    reason: str | None = None
    """Why it is rejected; None: it fits."""

    @property
    def peak(self) -> int:
        """The largest of all instants and ranks, bytes."""
        return max((size for found in self.instants for size in found.values()), default=0)

    @property
    def worst(self) -> tuple[Memory, str]:
        """The rank and the instant of the peak."""
        sizes = [(size, index, name) for index, found in enumerate(self.instants) for name, size in found.items()]
        _, index, name = max(sizes)
        return self.ranks[index], name

    @property
    def training_seconds(self) -> float:
        """Seconds of a step in which the trainer computes."""
        return sum(self.seconds.values()) - self.seconds.get("rollout", 0.0) - self.seconds.get("weight sync", 0.0)

    def step_seconds(self, staleness: int = 0) -> float:
        """Seconds of a step. With stale rollouts, engines and trainer work at the same time."""
        rollout, training = self.seconds.get("rollout", 0.0), self.training_seconds
        together = max(rollout, training) if staleness else rollout + training
        return together + self.seconds.get("weight sync", 0.0)

    def duration(self, setting: Setting) -> tuple[float, float]:
        """Returns the seconds of a step as the run makes it, and the hours of the run."""
        step = self.step_seconds(self.config.rollout.max_staleness if setting.engines else 0)
        return step, step * self.config.training.steps / 3600


def make_plan(config: Config, world: int, setting: Setting, rehearsals: Rehearsals, *, to_the_end: bool = True) -> Plan:
    """Rehearses every kind of rank of the layout. What the product refuses is the reason of the plan.

    Not `to_the_end`: only until a rank does not fit.
    """
    try:
        check(config, setting.stage, world)
    except ConfigError as error:
        return Plan(config, Layout(1, 1, 1, 1, 1), reason=str(error))
    layout, ranks, instants = layout_of(config, world), list[Memory](), list[dict[str, int]]()
    for kind in rank_kinds(config, world):
        report = rehearsals.report(case_of(config, setting.stage, world, kind))
        if report.error is not None:
            return Plan(config, layout, reason=f"{kind}: {report.error}")
        ranks.append(Memory(kind, report))
        instants.append(_with_engine(ranks[-1], config, setting))
        if not to_the_end and max(instants[-1].values()) > setting.card.memory:
            break
    seconds = _seconds(config, layout, setting, ranks)
    plan = Plan(config, layout, tuple(ranks), tuple(instants), seconds)
    return replace(plan, reason=_reason(plan, setting))


def _with_engine(memory: Memory, config: Config, setting: Setting) -> dict[str, int]:
    """Adds what an engine on the same card holds: beside the trainer at every instant, or in turns with it."""
    found, engines = dict(memory.instants), setting.engines
    if engines is None:
        return found
    if engines.colocated:
        # while weights are loaded, the trainer's state, a tensor on its way and the engine's weights are there
        found["export"] = found.get("export", memory.state) + engines.weights
        kept = int(memory.report.notes.get("besides", 0))
        found["engine's turn"] = kept + engines.weights + _cache_wanted(engines)
    elif setting.embedded and memory.kind.rank == 0:
        held = engines.weights + _embedded_cache(engines)
        found = {name: size + held for name, size in found.items()}
    return found


def _cache_wanted(engines: Engines) -> int:
    """Returns bytes of keys and values that a vLLM engine takes for itself, or what one of the longest needs at least."""
    needed = engines.longest * engines.cache_per_token // engines.tensor
    return int(ASSUMED.engine_workspace_bytes.value) + max(engines.cache, needed)


def _embedded_cache(engines: Engines) -> int:
    """Returns bytes of the rows of the embedded engine when all are at their longest (models/decoding_buckets.py)."""
    rows, capacity = (1 << math.ceil(math.log2(n)) for n in (engines.concurrency, max(512, engines.longest)))
    return rows * capacity * engines.cache_per_token


def _seconds(config: Config, layout: Layout, setting: Setting, ranks: list[Memory]) -> dict[str, float]:
    found: dict[str, float] = {}
    engines, work = setting.engines, setting.work
    if engines is not None:
        prompt = ASSUMED.prompt_tokens.value
        found["rollout"] = engines.seconds(work.sequences, work.mean - prompt, config.rollout.max_new_tokens, prompt)
    found |= seconds_of(config, layout, work, setting.card, [memory.report for memory in ranks], setting.stage)
    if engines is not None:
        bucket = config.weight_sync.bucket_mib * MIB
        route = Route(engines.arch, layout, engines.count, engines.tensor, setting.card, bucket)
        found["weight sync"] = of_transport(route, config.weight_sync.transport).seconds
    return found


def _reason(plan: Plan, setting: Setting) -> str | None:
    engines = setting.engines
    if engines is not None and engines.cache <= 0:
        return f"an engine of {engines.tensor} GPUs has no room for keys and values beside its weights"
    if plan.peak <= setting.card.memory:
        return None
    memory, instant = plan.worst
    return f"{memory.kind} needs {plan.peak / GIB:,.1f} GiB at the instant '{instant}'"
