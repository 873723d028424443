"""The checks of a training stage before it loads or writes anything: its parts fit, and it will delete no source."""

from __future__ import annotations

from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.data.start_check import check_corpus, check_rollouts, check_texts
from megatron_lwz.errors import ConfigError
from megatron_lwz.models.hf.target import EXPORT, check_target
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.served_teacher import check_served_teacher
from megatron_lwz.training.teacher import check_teacher
from megatron_lwz.training.trackers import check_trackers


def check_grpo_start(config: Config) -> None:
    """Checks the config of a GRPO run, and what it names. Raises LwzError."""
    config.check_grpo()
    check_trackers(config)
    check_rollouts(config)
    check_teacher(config)
    check_served_teacher(config)
    versions = RunPaths(config.run.dir).weights
    for key, source in _sources(config).items():
        if source.resolve().is_relative_to(versions.resolve()):
            advice = f"lies in {versions}, whose old versions this run deletes: copy it, or choose another run.dir"
            raise ConfigError(key, str(source), advice)


def check_supervised_start(config: Config, *, corpus: bool = False) -> None:
    """Checks a run of SFT, preference optimisation, a reward model or, with `corpus`, pretraining. Raises LwzError."""
    check_trackers(config)
    (check_corpus if corpus else check_texts)(config)
    check_target(RunPaths(config.run.dir).hf, EXPORT, _sources(config).values())  # written at the end of the run


def _sources(config: Config) -> dict[str, Path]:
    """Returns the folders from which a run reads weights and tokenizer, by config key."""
    given = {
        "model.hf": config.model.hf,
        "model.tokenizer": config.model.tokenizer,
        "checkpoint.load": config.checkpoint.load,
        "grpo.teacher": config.grpo.teacher,
    }
    return {key: Path(value) for key, value in given.items() if value is not None}
