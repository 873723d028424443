"""The options that all training stages share: CONFIG with its overrides, `--dry-run`, `--profile`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_lwz import processor
from megatron_lwz.cli import common, dry_run, profile
from megatron_lwz.config import Config, Stage, load_config
from megatron_lwz.distributed import environment, platform
from megatron_lwz.training.profiler import Profiler

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What a command line asks a stage to do."""

    config: Config
    profiler: Profiler


def load(argv: Sequence[str], stage: Stage) -> Start | None:
    """Returns what to run; None after a dry run, which has then been printed. Raises LwzError."""
    parser = common.parser()
    dry_run.add_options(parser)
    profile.add_options(parser)
    options = parser.parse_intermixed_args(list(argv))
    asked = profile.window(profile.take(options), environment.world_size())
    if asked is not None and options.dry_run is not None:
        raise common.UsageError("--profile: not with --dry-run, which trains no step: leave one of them out")
    config = load_config(options.config, options.overrides)
    if options.dry_run != "shapes":  # shapes are those of a GPU
        config = for_this_machine(config)
    if dry_run.done(config, stage, options):
        return None
    return Start(profile.with_peak(config), Profiler(asked))


def for_this_machine(config: Config) -> Config:
    """Returns the config with fp32 where nobody chose a precision and this machine's CPU, without a GPU, emulates bf16."""
    training = config.training
    if "precision" in training.model_fields_set or platform.has_gpu() or processor.has_fast_bf16():
        return config
    if environment.rank() == 0:
        log.warning("training.precision: fp32, since this CPU emulates bf16, which is several times slower")
    return config.model_copy(update={"training": training.model_copy(update={"precision": "fp32"})})
