"""Which stages read which settings, and which of a config's settings a stage does not read."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_lwz.config.changes import changes
from megatron_lwz.config.kept import ALL, Stage, covers
from megatron_lwz.config.tree import Config

_GRPO: tuple[Stage, ...] = ("grpo",)
_TEXTS: tuple[Stage, ...] = ("pretrain", "sft")
_SUPERVISED: tuple[Stage, ...] = ("pretrain", "sft", "reward_model", "dpo")
_NAMED = 8
"""Settings that one warning names."""

READERS: Mapping[str, tuple[Stage, ...]] = {
    "data.prompts": _GRPO,
    "data.held_out_prompts": _GRPO,
    "data.max_prompt_tokens": _GRPO,
    "data.prompt_template": _GRPO,
    "data.curriculum": _GRPO,
    "data.template": ("sft", "dpo", "grpo"),
    "data.corpus": ("pretrain",),
    "data.reset_attention": ("pretrain",),
    "data.instructions": ("sft",),
    "data.validation": _TEXTS,
    "training.prompts_per_step": _GRPO,
    "training.updates_per_batch": _GRPO,
    "training.accumulate_groups": _GRPO,
    "training.sequences_per_step": _SUPERVISED,
    "training.ramp_from": _SUPERVISED,
    "training.ramp_steps": _SUPERVISED,
    "training.sequence_length": _SUPERVISED,
    "training.loss_spike": _SUPERVISED,
    "training.z_loss": _TEXTS,
    "rollout": _GRPO,
    "reward": _GRPO,
    "judge": _GRPO,
    "grpo": _GRPO,
    "weight_sync": _GRPO,
    "lora": ("pretrain", "sft", "dpo", "grpo"),
    "sft": ("sft",),
    "reward_model": ("reward_model",),
    "dpo": ("dpo",),
    "checkpoint.best_metric": _GRPO,
    "checkpoint.best_direction": _GRPO,
    "evaluation.sequences": _TEXTS,
    "evaluation.samples": _GRPO,
    "evaluation.concurrent": _GRPO,
    "evaluation.urls": _GRPO,
    "evaluation.engine_threads": _GRPO,
    "evaluation.most_begun": _GRPO,
    "evaluation.quality": _GRPO,
    "logging.rollouts_in_report": _GRPO,
    "logging.length_buckets": _GRPO,
}
"""Section or key → the stages that read it. Every stage reads all others; `launch` is for `lwz launch`."""


def reads(stage: Stage, key: str) -> bool:
    """Whether a stage reads a key of the config."""
    return all(stage in stages for name, stages in READERS.items() if covers(name, key))


def unread(config: Config, stage: Stage) -> list[str]:
    """Returns the keys that are not at their defaults and that `stage` does not read, in the order of the config."""
    return [change.key for change in changes(Config(), config) if not reads(stage, change.key)]


def unread_note(config: Config, stage: Stage) -> str | None:
    """Returns one line on the settings that `unread` finds, None if there are none."""
    keys = unread(config, stage)
    if not keys:
        return None
    more = f" and {len(keys) - _NAMED} more (lwz config show lists them)" if len(keys) > _NAMED else ""
    return f"stage {stage} does not read {', '.join(keys[:_NAMED])}{more}: what is set there changes nothing"


def readers(key: str) -> tuple[Stage, ...]:
    """Returns the stages that read a key."""
    return tuple(stage for stage in ALL if reads(stage, key))
