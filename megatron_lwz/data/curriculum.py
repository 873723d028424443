"""The pools of a curriculum: which prompts each stage draws from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.config.curriculum import KEY, CurriculumSection, StageSection
from megatron_lwz.data.prompts import read_prompts
from megatron_lwz.errors import ConfigError
from megatron_lwz.types import Prompt


@dataclass(frozen=True)
class Pool:
    """A stage and its prompts, in the order of the file."""

    stage: StageSection
    prompts: tuple[Prompt, ...]
    most_tokens: int
    """Maximum tokens of a response in this stage."""
    first_step: int
    """The step at which the stage begins at the earliest, from 1."""


def make_pools(section: CurriculumSection, prompts: Sequence[Prompt], most_tokens: int) -> list[Pool]:
    """Returns the pool of each stage, in order. `most_tokens` is rollout.max_new_tokens.

    Raises ConfigError for a stage without prompts, and for one whose gate reads the length reward, which scores only
    prompts with a length range, if none of its prompts has one.
    """
    pools = []
    for place, (stage, first) in enumerate(zip(section.stages, section.first_steps(), strict=True)):
        key, gate = f"{KEY}.stages.{place}", stage.gate
        found = tuple(prompt for prompt in prompts if stage.holds(_asked(prompt)))
        if not found:
            raise ConfigError(key, stage.name, f"no prompt asks for {_range(stage)}: {_lengths(prompts)}")
        metrics = [gate.metric] if gate is not None and gate.at_least is not None else []
        metrics = [section.success if metric == "success" else metric for metric in metrics]
        if any(metric.partition(".")[0] == "length" for metric in metrics) and not any(p.length for p in found):
            advice = f"never has a value in stage '{stage.name}': no prompt of its pool has a length range"
            raise ConfigError(f"{key}.gate.metric", metrics[0], advice)
        pools.append(Pool(stage, found, stage.max_new_tokens or most_tokens, first))
    return pools


def describe(pools: Sequence[Pool], prompts: Sequence[Prompt], steps: int, batch: int) -> list[str]:
    """Returns one line per stage, and lines on what is surely not meant. The run has `steps` steps of `batch` prompts."""
    lines = []
    for number, pool in enumerate(pools, 1):
        begins = f"from step {pool.first_step} on" if number == 1 else f"not before step {pool.first_step}"
        counts = f"{len(pool.prompts):,} of {len(prompts):,} prompts ({_range(pool.stage)})"
        lines.append(
            f"curriculum: stage {number} of {len(pools)}, '{pool.stage.name}', {begins}: {counts}, "
            f"at most {pool.most_tokens:,} tokens per response; {_ends(pool.stage)}"
        )
    drawn = {prompt.id for pool in pools for prompt in pool.prompts}
    if left := len(prompts) - len(drawn):
        lines.append(f"curriculum: {left:,} prompts are in no stage and are never drawn")
    small = [f"'{pool.stage.name}'" for pool in pools if len(pool.prompts) < batch]
    if small:
        lines.append(f"curriculum: a step of {batch} prompts draws some of stage {', '.join(small)} more than once")
    late = [pool.stage.name for pool in pools if pool.first_step > steps]
    if late:
        lines.append(f"curriculum: stage '{late[0]}' cannot begin within training.steps = {steps}: lower min_steps")
    return lines


def planned(config: Config) -> list[str]:
    """Returns what `describe` says of a config's curriculum, for plans and dry runs; [] without one.

    Prompts over data.max_prompt_tokens are counted too: no tokenizer is needed. A file of prompts that this machine does
    not have is said. Raises ConfigError as `make_pools` does, and DataError for a file that cannot be read.
    """
    section, path = config.data.curriculum, config.data.prompts
    if not section.used or path is None:
        return []
    if not Path(path).exists():
        return [f"curriculum: {path} is not on this machine, so the prompts of the stages are not counted"]
    prompts = read_prompts(path, maximum_length=config.reward.length.maximum)
    pools = make_pools(section, prompts, config.rollout.max_new_tokens)
    return describe(pools, prompts, config.training.steps, config.training.prompts_per_step)


def _ends(stage: StageSection) -> str:
    """Returns in words when a stage ends."""
    gate = stage.gate
    if gate is None:
        return "it stays to the end"
    ways = []
    if gate.at_least is not None:
        ways.append(f"once {gate.metric} reaches {gate.at_least:g} over {gate.window} steps")
    if gate.max_steps is not None:
        ways.append(f"after {gate.max_steps} steps")
    return f"it ends {' or '.join(ways)}"


def _asked(prompt: Prompt) -> int | None:
    return prompt.length.upper if prompt.length is not None else None


def _range(stage: StageSection) -> str:
    if stage.asked_to is not None:
        return f"{stage.asked_from} to {stage.asked_to}"
    return f"{stage.asked_from} or more" if stage.asked_from else "any length"


def _lengths(prompts: Sequence[Prompt]) -> str:
    """Returns which lengths the prompts ask for."""
    asked = [length for prompt in prompts if (length := _asked(prompt)) is not None]
    if not asked:
        return "no prompt has a length range (lwz prompts asks a judge for them)"
    return f"they ask for {min(asked)} to {max(asked)}, and {len(prompts) - len(asked)} have no range"
