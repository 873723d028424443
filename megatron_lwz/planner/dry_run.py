"""The dry run of a stage: one step of the largest size, rehearsed on fake GPUs for every kind of rank of a layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_lwz.config import Config, Stage
from megatron_lwz.errors import LwzError
from megatron_lwz.rehearsal.case import Case, Report
from megatron_lwz.rehearsal.pool import rehearse
from megatron_lwz.training.dpo import check_dpo
from megatron_lwz.training.reward_model import check_reward_model
from megatron_lwz.training.sft import check_sft
from megatron_lwz.training.supervised import check_supervised

CHECKS: dict[Stage, Callable[[Config], None]] = {
    "grpo": Config.check_grpo,
    "sft": check_sft,
    "pretrain": check_supervised,
    "reward_model": check_reward_model,
    "dpo": check_dpo,
}
"""What each stage requires of its config beyond single fields; no file is read."""

INSTANTS = {
    "start": ("parameters", "gradients", "optimizer"),
    "log-probs": ("log-probs",),
    "update": ("forward+backward",),
    "optimizer step": ("step",),
    "validation": ("forward",),
    "export": ("export",),
}
"""Instant of a step → phases of the rehearsal."""


class DryRunError(LwzError):
    """The product's own code refused the step on a rank."""


@dataclass(frozen=True)
class RankKind:
    """Ranks that do the same: those of one pipeline stage. `rank` is the first of them, which holds the most.

    Where parameters do not divide evenly, the first data-parallel rank has the largest share of the optimizer. Rank 0
    also exports the weights.
    """

    stage: int
    stages: int
    rank: int

    def __str__(self) -> str:
        return f"stage {self.stage + 1} of {self.stages} (rank {self.rank})" if self.stages > 1 else "every rank"


@dataclass(frozen=True)
class Memory:
    """What a kind of rank holds, in bytes, and what its step moves."""

    kind: RankKind
    report: Report

    @property
    def state(self) -> int:
        """Parameters, gradients and optimizer: allocated from step to step."""
        return sum(self.report.state.values())

    @property
    def instants(self) -> dict[str, int]:
        """Instant → highest number of bytes allocated during it."""
        return instants(self.report.peaks, self.report.notes)

    @property
    def peak(self) -> int:
        """The largest of the instants."""
        return max(self.instants.values())


def instants(peaks: Mapping[str, int], notes: Mapping[str, Any]) -> dict[str, int]:
    """Returns instant → its peak, from the peaks of phases and the notes of a step, in the order of a step."""
    found = {name: [peaks[phase] for phase in phases if phase in peaks] for name, phases in INSTANTS.items()}
    if not notes.get("log_prob_passes"):
        found.pop("log-probs")
    return {name: max(sizes) for name, sizes in found.items() if sizes}


def rank_kinds(config: Config, world: int) -> list[RankKind]:
    """Returns the first, a middle and the last pipeline stage, as far as they differ."""
    stages = config.parallel.pipeline
    return [RankKind(stage, stages, stage * (world // stages)) for stage in sorted({0, stages // 2, stages - 1})]


def check(config: Config, stage: Stage, world: int) -> None:
    """Raises ConfigError for what the stage or the layout refuses, before anything is rehearsed."""
    config.check_layout(world)
    CHECKS[stage](config)


def case_of(config: Config, stage: Stage, world: int, kind: RankKind) -> Case:
    """Returns the step with the most memory that the config allows: longest sequences, packs filled to the cap.

    It has as many packs as the schedule holds at once on this rank. Further packs need no further memory.
    """
    parallel = config.parallel
    size = f"recompute {config.training.recompute}, {config.training.tokens_per_micro_batch:,} tokens"
    return Case(
        name=f"{stage} TP{parallel.tensor} CP{parallel.context} PP{parallel.pipeline} of {world}, {kind}, {size}",
        config=_without_files(config),
        stage=stage,
        world=world,
        rank=kind.rank,
        sequence=longest_sequence(config, stage),
        micro_batches=packs_at_once(config, kind.stage),
        fill=True,
        then=(export_of(config, stage),),
    )


def packs_at_once(config: Config, stage: int = 0) -> int:
    """Returns how many packs show the most memory of a pipeline stage: those that its schedule holds at once, and one more.

    The one more arrives while another leaves. A step has as many packs as there are stages at least, so the first stage
    holds no more. With virtual stages every rank gets as many as the first: that schedule takes only multiples of its stages.
    """
    pipeline = config.parallel.pipeline
    return pipeline * 2 if config.parallel.virtual_pipeline else min(pipeline, pipeline - stage + 1)


def export_of(config: Config, stage: Stage) -> str:
    """Returns the stage of a rehearsal that gives the weights away: `buckets` over NCCL, or `export`."""
    return "buckets" if stage == "grpo" and config.weight_sync.transport == "nccl" else "export"


def longest_sequence(config: Config, stage: Stage) -> int:
    """Returns the most tokens of a sequence, the last of which is a label only."""
    if stage == "grpo":
        return config.longest_rollout
    return config.training.sequence_length + 1


def dry_run(config: Config, stage: Stage, world: int) -> Iterator[Memory]:
    """Yields what each kind of rank of `world` ranks needs. Raises ConfigError, DryRunError or EnvironmentSetupError."""
    check(config, stage, world)
    kinds = rank_kinds(config, world)
    yield from run_cases(kinds, [case_of(config, stage, world, kind) for kind in kinds])


def run_cases(kinds: Sequence[RankKind], cases: Sequence[Case]) -> Iterator[Memory]:
    """Rehearses the cases, in one process after another."""
    for kind, report in zip(kinds, rehearse(cases), strict=True):
        if report.error is not None:
            error = DryRunError(f"{kind}: {report.error}")
            error.add_note(report.detail)
            raise error
        yield Memory(kind, report)


def _without_files(config: Config) -> dict[str, object]:
    """Returns the config's tree with the numbers of the model in the place of its folder."""
    model = config.model.model_copy(
        update={"hf": None, "preset": None, "head": None, "tokenizer": None, "architecture": config.architecture()}
    )
    return config.model_copy(update={"model": model}).model_dump(mode="json")
