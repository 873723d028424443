"""What a plan is for: the card, the work of a step, and the engines, from the command line."""

from __future__ import annotations

import argparse

from megatron_lwz.cli import common
from megatron_lwz.config import Config
from megatron_lwz.planner.assumptions import ASSUMED
from megatron_lwz.planner.engines import engines_of
from megatron_lwz.planner.hardware import gpu
from megatron_lwz.planner.plan import Setting
from megatron_lwz.planner.timing import Work
from megatron_lwz.rehearsal.case import Report


def setting_of(config: Config, options: argparse.Namespace) -> tuple[int, Setting]:
    """Returns the number of ranks that train, and what the plan is for. Raises LwzError."""
    card, training = gpu(options.gpu), config.training
    if options.stage != "grpo":
        count = training.sequences_per_step * (2 if options.stage in ("reward_model", "dpo") else 1)
        return options.gpus, Setting(options.stage, card, Work(count, options.mean_tokens or training.sequence_length))
    mean = options.mean_tokens or ASSUMED.mean_share.value * config.rollout.max_new_tokens
    work = Work(training.prompts_per_step * config.grpo.group_size, mean + ASSUMED.prompt_tokens.value)
    embedded = config.rollout.engine == "embedded" and not config.rollout.elsewhere
    if embedded:
        if options.engine_gpus or (options.engine_tensor or 1) > 1:
            raise common.UsageError("--engine-gpus, --engine-tensor: the embedded engine runs on the first trainer GPU")
        return options.gpus, Setting("grpo", card, work, engines_of(config, card, 1, 1, mean), embedded=True)
    if config.rollout.colocated:
        if options.engine_gpus:
            raise common.UsageError("--engine-gpus: with rollout.colocated the engines have all GPUs of the trainer")
        engines = engines_of(config, card, options.gpus, options.engine_tensor, mean)
        return options.gpus, Setting("grpo", card, work, engines)
    given, tensor = _own_gpus(config, options)
    if not 0 < given < options.gpus:
        raise common.UsageError(f"--engine-gpus {given}: must leave GPUs of the {options.gpus} for engines and trainer")
    return options.gpus - given, Setting("grpo", card, work, engines_of(config, card, given, tensor, mean))


def _own_gpus(config: Config, options: argparse.Namespace) -> tuple[int, int | None]:
    """Returns the GPUs of all engines and of each (None: to be chosen): as asked, else as `launch` has them, else half.

    `launch` counts where it describes a run of as many GPUs.
    """
    launch, engines = config.launch, config.launch.engines
    described = max(1, engines.nodes) * engines.per_node * engines.gpus
    if described and options.gpus == launch.nodes * launch.ranks + described and options.engine_gpus is None:
        return described, options.engine_tensor or engines.gpus
    return options.gpus // 2 if options.engine_gpus is None else options.engine_gpus, options.engine_tensor


def watch(report: Report) -> None:
    """Says on stderr what was rehearsed: a search takes minutes."""
    common.console(stderr=True).print(f"rehearsed {report.name}: {report.seconds:.1f} CPU s", markup=False)
