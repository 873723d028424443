"""Which layout, recomputation and micro-batch size are fastest among those that fit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from megatron_lwz.config import Config
from megatron_lwz.config.flops import sequence_flops, training_passes
from megatron_lwz.planner.assumptions import ASSUMED
from megatron_lwz.planner.dry_run import longest_sequence
from megatron_lwz.planner.engines import parameters
from megatron_lwz.planner.hardware import Gpu
from megatron_lwz.planner.plan import Plan, Setting, make_plan
from megatron_lwz.planner.rehearsals import Rehearsals
from megatron_lwz.planner.timing import Layout, layout_of, packs_per_rank, recomputed
from megatron_lwz.units import GIB

_RECOMPUTE = ("none", "selective", "full")
_MARGIN, _MARGIN_LARGER = 1.05, 1.2
"""Predictions above so many times the card's memory are not rehearsed; the second for more tokens than were rehearsed: a
part of the memory does not grow with them."""
_PER_LAYER = 10
"""Gathers and scatters of a pack's hidden states per layer under tensor parallelism, forward and backward."""


class Learned:
    """What rehearsals have shown of activations. One serves the searches of a table, whose layouts recur."""

    def __init__(self, rehearsals: Rehearsals) -> None:
        self.rehearsals = rehearsals
        self._known: dict[tuple[int, str], tuple[float, int]] = {}
        """(tensor, recomputation) → tokens of a rank, and bytes above the state during the update."""

    def above_state(self, config: Config, world: int, setting: Setting) -> tuple[float, float]:
        """Returns bytes of activations and workspaces of the first stage, about, and the margin of this prediction.

        It has some layers of several packs, which are as large as all layers of one: a layout without a pipeline tells
        them. 0 bytes if its rehearsal fails.
        """
        key, tokens = (config.parallel.tensor, config.training.recompute), _tokens_per_rank(config)
        if key not in self._known:
            alone = _changed(config, (config.parallel.tensor, config.parallel.context, 1), key[1], None)
            plan = make_plan(alone, world, setting, self.rehearsals)
            above = [memory.instants["update"] - memory.state for memory in plan.ranks]
            self._known[key] = (tokens, max(above, default=0))
        known, above_state = self._known[key]
        return above_state * tokens / known, _MARGIN if tokens <= known else _MARGIN_LARGER

    def correct(self, plan: Plan, world: int) -> None:
        """Takes what a rehearsed layout needed in place of what was known, so that similar ones are predicted better."""
        if plan.ranks:
            key = (plan.config.parallel.tensor, plan.config.training.recompute)
            above = max(memory.instants["update"] for memory in plan.ranks) - least_state(plan.config, world)
            self._known[key] = (_tokens_per_rank(plan.config), above)


def search(config: Config, world: int, setting: Setting, learned: Learned, *, keep: int, most: int) -> list[Plan]:
    """Returns plans, rejected ones too, in the order of their estimated time, until `keep` fit or `most` are rehearsed.

    Candidates that are far from fitting are rejected without a rehearsal: by the formula of the state, or by the
    activations of a layout with the same tensor parallelism, scaled. What fits is always rehearsed.
    """
    found: list[Plan] = []
    rehearsed = fitting = 0
    for candidate in sorted(candidates(config, world, setting), key=lambda c: estimate(c, world, setting)):
        if (reason := _too_large(candidate, world, setting, learned)) is not None:
            found.append(Plan(candidate, layout_of(candidate, world), reason=reason))
            continue
        found.append(make_plan(candidate, world, setting, learned.rehearsals, to_the_end=False))
        learned.correct(found[-1], world)
        rehearsed += 1
        fitting += found[-1].reason is None
        if fitting >= keep or rehearsed >= most:
            break
    return found


def _too_large(config: Config, world: int, setting: Setting, learned: Learned) -> str | None:
    """Returns why the layout is not worth a rehearsal."""
    state, memory = least_state(config, world), setting.card.memory
    if state > memory:
        return f"parameters, gradients and optimizer alone need {state / GIB:,.1f} GiB (formula)"
    above_state, margin = learned.above_state(config, world, setting)
    if (predicted := state + above_state) > margin * memory:
        return f"needs some {predicted / GIB:,.0f} GiB (scaled from a rehearsed layout, not rehearsed)"
    return None


def _tokens_per_rank(config: Config) -> float:
    """Returns the tokens of a pack whose hidden states a rank keeps, with sequence parallelism."""
    shared = config.parallel.tensor if config.parallel.sequence else 1
    return config.training.tokens_per_micro_batch / config.parallel.context / shared


def candidates(config: Config, world: int, setting: Setting) -> Iterator[Config]:
    """Yields the config in other layouts: tensor parallelism within a machine, two micro-batch sizes."""
    arch = config.architecture()
    given = config.training.tokens_per_micro_batch
    caps = {given, max(longest_sequence(config, setting.stage), given * 2)}
    sizes = [2**power for power in range(world.bit_length())]
    for tensor, context, pipeline in product(sizes, sizes, sizes):
        ranks = tensor * context * pipeline
        divides = not (arch.num_key_value_heads % tensor or arch.num_hidden_layers % pipeline or world % ranks)
        if not divides or tensor > setting.card.gpus_per_node or context > 16 or pipeline > 16:
            continue
        for recompute, cap in product(_RECOMPUTE, sorted(caps)):
            yield _changed(config, (tensor, context, pipeline), recompute, cap)


def _changed(config: Config, sizes: tuple[int, int, int], recompute: str, cap: int | None) -> Config:
    names = dict(zip(("tensor", "context", "pipeline"), sizes, strict=True))
    parallel = config.parallel.model_copy(update={**names, "virtual_pipeline": None})
    packs = cap or config.training.tokens_per_micro_batch
    training = config.training.model_copy(update={"recompute": recompute, "tokens_per_micro_batch": packs})
    return config.model_copy(update={"parallel": parallel, "training": training})


def least_state(config: Config, world: int) -> int:
    """Returns bytes of parameters, gradients and optimizer of a rank of the largest stage, by the usual formula.

    With LoRA those of the frozen parameters, which have neither.
    """
    layout, two = layout_of(config, world), 2 if config.training.precision == "bf16" else 4
    sharded = layout.data * layout.context if config.parallel.distributed_optimizer else 1
    each = two if config.adapter() is not None else two + 4 + (12 if two == 2 else 8) / sharded
    arch = config.architecture()
    whole, table = parameters(arch), arch.vocab_size * arch.hidden_size
    layers = whole - table * (1 if arch.tie_word_embeddings else 2)
    held = whole if layout.pipeline == 1 else layers / layout.pipeline + table  # the first stage, or the last
    return int(held / layout.tensor * each)


def estimate(config: Config, world: int, setting: Setting) -> float:
    """Returns the seconds of a training step, roughly: for the order of the search only."""
    layout, work, card, arch = layout_of(config, world), setting.work, setting.card, config.architecture()
    packs = packs_per_rank(config, layout, work)
    rate = card.bf16_tflops * 1e12 * ASSUMED.matrix_share.value * world
    passes = training_passes(config) + recomputed(arch, config.training.recompute, work.mean)
    compute = passes * work.sequences * sequence_flops(arch, int(work.mean)) / rate
    bubble = 1.0 + (layout.pipeline - 1) / packs
    return (compute + packs * _moved(config, layout, card)) * bubble + _reduced(config, layout, card)


def _moved(config: Config, layout: Layout, card: Gpu) -> float:
    """Returns the seconds of tensor and context parallelism in a pack."""
    arch, tokens = config.architecture(), config.training.tokens_per_micro_batch / layout.context
    nvlink = card.nvlink_gb_per_s * 1e9 * ASSUMED.nvlink_share.value
    network = card.network_gb_per_s * 1e9 * ASSUMED.network_share.value
    layers = arch.num_hidden_layers / layout.pipeline
    hidden = _PER_LAYER * tokens * arch.hidden_size * 2 * (layout.tensor - 1) / layout.tensor / nvlink
    within = layout.tensor * layout.context <= card.gpus_per_node
    values = 2 * tokens * 4 * arch.num_key_value_heads * arch.head_size / layout.tensor * (layout.context - 1)
    return layers * (hidden + values / (nvlink if within else network))


def _reduced(config: Config, layout: Layout, card: Gpu) -> float:
    """Returns the seconds of the reduction of gradients and the gathering of weights. An adapter's are too few to count."""
    if config.adapter() is not None:
        return 0.0
    copies = layout.data * layout.context
    size = 6 * parameters(config.architecture()) / (layout.tensor * layout.pipeline) * (copies - 1) / copies
    within = layout.ranks <= card.gpus_per_node
    return size / ((card.nvlink_gb_per_s if within else card.network_gb_per_s) * 1e9)
