"""Trains the writing reward model: Bradley–Terry on preference pairs (LongWriter-Zero, section 3.1), in any layout."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_lwz.algorithms.bradley_terry import bradley_terry_loss
from megatron_lwz.config import Config
from megatron_lwz.config.reward_model import RewardModelSection
from megatron_lwz.data.preferences.batches import PairBatch, PairSource, TokenPair, pair_batch, tokenize_pairs
from megatron_lwz.data.preferences.rendering import Rendering, rendering_for, save_rendering
from megatron_lwz.data.replies import end_texts
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.distributed import groups, launch, platform
from megatron_lwz.errors import ConfigError
from megatron_lwz.evaluation.preferences import ScoredPair, accuracies
from megatron_lwz.kernels.collectives import sum_over
from megatron_lwz.models.hf.export import export_policy
from megatron_lwz.models.reward_model import last_token_scores
from megatron_lwz.training.batching import make_micro_batches, make_pair_batches
from megatron_lwz.training.pairs import check_pair_size, counted_once, longest_pair, read_files, scored_pair
from megatron_lwz.training.start import check_supervised_start
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import LossFn, TokenLossFn, forward_chunks
from megatron_lwz.training.supervised import check_supervised, with_epochs
from megatron_lwz.types import MicroBatch, SequenceBatch

log = logging.getLogger(__name__)

_PAIRS_AT_A_TIME = 256


@dataclass
class PairTask:
    """Preference pairs as a Task of the shared loop."""

    section: RewardModelSection
    source: PairSource[TokenPair, PairBatch]
    held_out: Sequence[TokenPair]
    rendering: Rendering
    scored: list[ScoredPair] = field(default_factory=list)
    """The held-out pairs with their most recent scores."""
    shown: Sequence[str] = ("loss", "accuracy", "difference", "tokens_per_second")
    token_loss: TokenLossFn | None = None

    def begin(self, state: TrainState) -> None:
        """The loss needs nothing of the initial state."""

    def take(self, cursor: int, count: int) -> tuple[PairBatch, int]:
        """Returns the next pairs in their seeded order."""
        return self.source.take(cursor, count)

    def micro_batches(self, batch: PairBatch, config: Config) -> list[MicroBatch]:
        """Returns this rank's micro-batches. Both texts of a pair are in one micro-batch."""
        return make_pair_batches(batch.sequences, config, batch.weights)

    def least_tokens(self, config: Config) -> int:
        """Returns the longest pair."""
        return longest_pair(config)

    def objective(self, batch: PairBatch) -> LossFn:
        """Returns the Bradley–Terry loss of the pairs of a micro-batch."""

        def loss(
            scores: torch.Tensor, micro_batch: MicroBatch, _index: int
        ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            whole = sum_over(last_token_scores(scores, micro_batch, len(batch.sequences)), groups.context_group())
            total, metrics = bradley_terry_loss(
                whole[0],
                whole[1, 0::2] > 0,
                batch.margins.to(scores.device),
                margin=self.section.margin,
                center=self.section.center,
            )
            return counted_once(total, metrics)

        return loss

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Returns loss and accuracy on the held-out pairs: over all pairs, and by kind."""
        if not self.held_out:
            return {}
        self.scored = score_pairs(state, self.held_out)
        differences = torch.tensor([pair.difference for pair in self.scored])
        found = {
            "validation/loss": float(torch.nn.functional.softplus(-differences).mean()),
            "validation/accuracy": sum(pair.win for pair in self.scored) / len(self.scored),
        }
        by_kind = accuracies(self.scored, lambda pair: pair.kind)
        return found | {f"validation/accuracy/{kind}": share.value for kind, share in by_kind.items()}

    def export(self, state: TrainState, folder: Path) -> None:
        """Writes a folder that transformers loads as a sequence classifier with one label, and the prompt rendering."""
        export_policy(state.policies, folder, config_files_from=state.config.tokenizer_dir())
        if groups.is_rank_zero():
            save_rendering(folder, self.rendering)


def prepare(config: Config) -> tuple[Config, PairTask]:
    """Starts the layout and reads the pairs; returns the config with a scalar head and the steps of the epochs.

    All ranks call it. Raises LwzError.
    """
    config = config.model_copy(update={"model": config.model.model_copy(update={"head": "scalar"})})
    launch.initialize(config)
    check_reward_model(config)
    check_supervised_start(config)
    task = build_task(config)
    return with_epochs(config, task.source.total), task


def check_reward_model(config: Config) -> None:
    """Checks the requirements of the stage beyond single fields. Raises ConfigError."""
    if not config.reward_model.pairs:
        raise ConfigError("reward_model.pairs", [], "name files of preference pairs (lwz pairs)")
    check_pair_size(config)
    check_supervised(config)


def build_task(config: Config) -> PairTask:
    """Reads and tokenises the pairs. Every rank holds all of them. Raises DataError."""
    section, folder = config.reward_model, config.tokenizer_dir()
    rendering = rendering_for(folder, section.template, thinking=section.thinking)
    tokenizer = Tokenizer(folder)
    tokenize = partial(
        tokenize_pairs,
        encode=tokenizer.encode,
        rendering=rendering,
        maximum_tokens=config.training.sequence_length,
        ends=end_texts(tokenizer),
    )
    train_pairs = read_files(section.pairs, "reward_model.pairs", tokenizer, tokenize)
    held_out = read_files(section.held_out, "reward_model.held_out", tokenizer, tokenize)
    shared = {pair.pair.document for pair in train_pairs} & {pair.pair.document for pair in held_out}
    if shared and groups.is_rank_zero():
        log.warning("%d source documents stand in training and held-out pairs, e.g. %.80s", len(shared), min(shared))
    largest = max(abs(1.0 if pair.pair.margin is None else pair.pair.margin) for pair in train_pairs)
    if section.margin * largest > torch.finfo(torch.float32).max:
        raise ConfigError(
            "reward_model.margin",
            section.margin,
            f"times the largest margin of a pair ({largest:g}) is too large for fp32",
        )
    source = PairSource(
        train_pairs,
        pair_batch,
        section="reward_model",
        seed=config.run.seed,
        shuffle=config.data.shuffle,
        epochs=section.epochs,
    )
    return PairTask(section, source, held_out, rendering)


def score_pairs(state: TrainState, pairs: Sequence[TokenPair]) -> list[ScoredPair]:
    """Returns the pairs with their scores, on every rank. Collective, forward only."""
    found = []
    for start in range(0, len(pairs), _PAIRS_AT_A_TIME):
        window = pairs[start : start + _PAIRS_AT_A_TIME]
        scores = score_sequences(state.chunks, pair_batch(window).sequences, state.config).tolist()
        found += [scored_pair(pair, *scores[2 * place : 2 * place + 2]) for place, pair in enumerate(window)]
    return found


def score_sequences(chunks: Sequence[torch.nn.Module], batch: SequenceBatch, config: Config) -> torch.Tensor:
    """Returns the score of each sequence, [N] fp32 on the CPU of every rank. Collective.

    The last token of each sequence is an extra mark after its text. The score is read at the token before it.
    """
    micro_batches = make_micro_batches(batch, config, torch.ones(len(batch.tokens)))
    outputs = forward_chunks(chunks, micro_batches)
    scores = torch.zeros(len(batch), device=platform.device())
    if outputs is not None:
        for micro_batch, found in zip(micro_batches, outputs, strict=True):
            scores += last_token_scores(found, micro_batch, len(batch))[0]
        dist.all_reduce(scores, group=groups.data_context_group())  # every text was scored on one rank
    dist.broadcast(scores, src=groups.last_stage_rank(), group=groups.pipeline_group())
    return scores.cpu()
