"""What the two stages have in common that learn from preference pairs: the reward model and preference optimisation."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from megatron_lwz.config import Config, Stage
from megatron_lwz.data.preferences.batches import TokenPair
from megatron_lwz.data.preferences.formats import read_pairs
from megatron_lwz.data.preferences.pairs import PreferencePair
from megatron_lwz.data.preferences.pieces import size
from megatron_lwz.data.preferences.policy_pairs import PolicyPair
from megatron_lwz.data.replies import LeftOut
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.distributed import groups
from megatron_lwz.errors import ConfigError, DataError
from megatron_lwz.evaluation.preferences import ScoredPair, summarize_pairs
from megatron_lwz.metrics import write_json
from megatron_lwz.training.batching import pair_size
from megatron_lwz.training.profiler import Profiler
from megatron_lwz.training.run_folder import RunFolder
from megatron_lwz.training.supervised import OnStep, Task, run_task
from megatron_lwz.writing import write_text

log = logging.getLogger(__name__)

Pair = TypeVar("Pair", TokenPair, PolicyPair)


class ScoringTask(Task[Any], Protocol):
    """A Task that scores held-out pairs."""

    scored: list[ScoredPair]
    """The held-out pairs with their most recent scores."""


def train(
    stage: Stage,
    config: Config,
    task: ScoringTask,
    on_step: OnStep = lambda _step, _shown: None,
    profiler: Profiler | None = None,
) -> RunFolder:
    """Runs or resumes the training that the stage's `prepare` made ready; returns the run folder.

    All ranks call it. Raises LwzError. Besides the usual files of a stage it writes `held_out.jsonl` and
    `held_out.json`: the two scores of each held-out pair, and the summary.
    """
    run = RunFolder(config, stage)
    if not run.finished:
        run_task(config, run, task, on_step, profiler)
    if groups.is_rank_zero() and task.scored:
        rows = "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in task.scored)
        write_text(run.held_out, rows)
        write_json(run.held_out_summary, summarize_pairs(task.scored))
    return run


def longest_pair(config: Config) -> int:
    """Returns how many tokens a pair of the longest texts takes in a micro-batch."""
    return pair_size((config.training.sequence_length, config.training.sequence_length), config)


def check_pair_size(config: Config) -> None:
    """Raises ConfigError unless both texts of any pair fit into a micro-batch."""
    longest, pair = config.training.sequence_length, longest_pair(config)
    if config.training.tokens_per_micro_batch < pair:
        raise ConfigError(
            "training.tokens_per_micro_batch",
            config.training.tokens_per_micro_batch,
            f"must hold a pair of texts of training.sequence_length = {longest} tokens: {pair}",
        )


def read_files(
    files: Sequence[str],
    key: str,
    tokenizer: Tokenizer,
    tokenize: Callable[[Sequence[PreferencePair]], tuple[list[Pair], LeftOut]],
    *,
    any_rejected: bool = False,
) -> list[Pair]:
    """Returns the pairs of the files that `key` names, tokenised. Logs what is left out. `any_rejected`: see `read_pairs`.

    Raises ConfigError for a file that is not there, DataError for one that cannot be read, and if no pair is kept.
    """
    for file in files:
        if not Path(file).is_file():
            raise ConfigError(key, file, "no such file: check the path")
    read = [pair for file in files for pair in read_pairs(Path(file), any_rejected=any_rejected)]
    kept, left_out = tokenize([pair for pair in read if isinstance(pair, PreferencePair)])
    left_out.update(pair for pair in read if isinstance(pair, str))
    if files and not kept:
        raise DataError(", ".join(files), left_out.all_of(len(read)))
    if groups.is_rank_zero() and files:
        log.info("%s: %d pairs, %s%s", key, len(kept), left_out, tokenizer.control_note())
    return kept


def counted_once(total: torch.Tensor, metrics: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns loss and metrics for ranks that all hold the sums of the whole context-parallel group.

    Every one has the whole gradient, but only the first counts them.
    """
    if groups.context_rank() == 0:
        return total, metrics
    return total - total.detach(), {name: torch.zeros_like(value) for name, value in metrics.items()}


def scored_pair(pair: TokenPair | PolicyPair, chosen: float, rejected: float) -> ScoredPair:
    """Returns the pair with its two scores, and the lengths of its texts."""
    of = pair.pair
    return ScoredPair(
        id=of.id,
        kind=of.kind,
        source=of.source,
        document=of.document,
        language=of.language,
        chosen=chosen,
        rejected=rejected,
        chosen_length=size(of.chosen),
        rejected_length=size(of.rejected),
        chosen_tokens=len(pair.chosen),
        rejected_tokens=len(pair.rejected),
    )
