"""Supervised fine-tuning on the responses of instruction rows, with the templates of reinforcement learning."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.data.examples import ExampleSource, ReadExamples, read_examples, supervised_batch
from megatron_lwz.data.instructions import Rendering
from megatron_lwz.data.replies import end_texts
from megatron_lwz.data.supervised import SupervisedBatch
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.distributed import launch
from megatron_lwz.errors import ConfigError
from megatron_lwz.training.profiler import Profiler
from megatron_lwz.training.run_folder import RunFolder
from megatron_lwz.training.start import check_supervised_start
from megatron_lwz.training.supervised import LanguageModeling, OnStep, check_supervised, run_task, with_epochs

log = logging.getLogger(__name__)


def prepare(config: Config) -> tuple[Config, ExampleSource]:
    """Starts the layout and reads the conversations; returns the config with the steps that `sft.epochs` needs.

    All ranks call it. Raises LwzError.
    """
    launch.initialize(config)
    check_sft(config)
    check_supervised_start(config)
    source = build_source(config)
    return with_epochs(config, source.total), source


def train(
    config: Config,
    source: ExampleSource,
    on_step: OnStep = lambda _step, _shown: None,
    profiler: Profiler | None = None,
) -> None:
    """Runs or resumes the fine-tuning that `prepare` made ready. All ranks call it. Raises LwzError."""
    run = RunFolder(config, "sft")
    if not run.finished:
        task = LanguageModeling(source, validation_batches(config), config.training.z_loss)
        run_task(config, run, task, on_step, profiler)


def check_sft(config: Config) -> None:
    """Checks the requirements of fine-tuning beyond single fields. Raises ConfigError."""
    if not config.data.instructions:
        raise ConfigError("data.instructions", [], "name the files of instruction rows")
    check_supervised(config)


def build_source(config: Config) -> ExampleSource:
    """Reads and tokenises `data.instructions`. Every rank holds all rows. Raises DataError."""
    found = _read(config, config.data.instructions)
    log.info("%s", found)
    return ExampleSource(
        found.kept,
        weighting=config.sft.weighting,
        seed=config.run.seed,
        shuffle=config.data.shuffle,
        epochs=config.sft.epochs,
    )


def validation_batches(config: Config) -> dict[str, list[SupervisedBatch]]:
    """Returns the rows of `data.validation`, in batches of a step's size. Raises DataError."""
    size = config.training.sequences_per_step
    found = {}
    for name, files in config.data.validation.items():
        read = _read(config, files)
        log.info("validation %s: %s, the first %d are used", name, read, config.evaluation.sequences)
        kept = read.kept[: config.evaluation.sequences]
        found[name] = [supervised_batch(kept[at : at + size], config.sft.weighting) for at in range(0, len(kept), size)]
    return found


def _read(config: Config, files: Iterable[str]) -> ReadExamples:
    section, tokenizer = config.sft, Tokenizer(config.tokenizer_dir())
    read = read_examples(
        [Path(file) for file in files],
        tokenizer.encode,
        sorted(tokenizer.eos_ids),
        rendering=Rendering(
            config.data.template, section.turns, section.wrap_answer, section.separator, end_texts(tokenizer)
        ),
        maximum_tokens=config.training.sequence_length,
        long_rows=section.long_rows,
    )
    return replace(read, control_note=tokenizer.control_note())
