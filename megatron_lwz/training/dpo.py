"""Direct preference optimisation of the policy on preference pairs (DPO, 2305.18290), in any layout.

The reference is the policy that the run begins with, frozen (`training/reference.py`); with LoRA the base without the
adapter. Its log-probs are computed step by step, in the micro-batches of the step: nothing has to be stored for a
resumed run, and a policy that has not changed has a log-ratio of exactly 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_lwz.algorithms.dpo import dpo_loss, implicit_rewards, sequence_sums
from megatron_lwz.config import Config
from megatron_lwz.config.sections import DpoSection
from megatron_lwz.data.preferences.batches import PairSource
from megatron_lwz.data.preferences.policy_pairs import PolicyPair, ReplyForm, policy_pair_batch, tokenize_policy_pairs
from megatron_lwz.data.replies import end_texts
from megatron_lwz.data.supervised import SupervisedBatch
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.distributed import groups, launch, platform
from megatron_lwz.errors import ConfigError
from megatron_lwz.evaluation.preferences import ScoredPair, accuracies
from megatron_lwz.kernels.collectives import sum_over
from megatron_lwz.models.hf.export import export_policy
from megatron_lwz.training.batching import make_pair_batches
from megatron_lwz.training.pairs import check_pair_size, counted_once, longest_pair, read_files, scored_pair
from megatron_lwz.training.reference import ReferenceWeights
from megatron_lwz.training.start import check_supervised_start
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import LossFn, TokenLossFn, forward_chunks
from megatron_lwz.training.supervised import check_supervised, with_epochs
from megatron_lwz.types import MicroBatch

log = logging.getLogger(__name__)

_PAIRS_AT_A_TIME = 64

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]


@dataclass
class DpoTask:
    """Preference pairs of replies as a Task of the shared loop."""

    section: DpoSection
    source: PairSource[PolicyPair, SupervisedBatch]
    held_out: Sequence[PolicyPair]
    scored: list[ScoredPair] = field(default_factory=list)
    """The held-out pairs with their most recent implicit rewards."""
    shown: Sequence[str] = ("loss", "accuracy", "margin", "tokens_per_second")
    token_loss: TokenLossFn | None = None
    _state: TrainState | None = None
    _reference: ReferenceWeights | None = None

    def begin(self, state: TrainState) -> None:
        """Keeps the initial policy as the reference."""
        self._state, self._reference = state, ReferenceWeights(state)

    def take(self, cursor: int, count: int) -> tuple[SupervisedBatch, int]:
        """Returns the next pairs in their seeded order."""
        return self.source.take(cursor, count)

    def micro_batches(self, batch: SupervisedBatch, config: Config) -> list[MicroBatch]:
        """Returns this rank's micro-batches, with the reference's log-probs on the last pipeline stage. Collective.

        Both replies of a pair are in one micro-batch.
        """
        assert self._state is not None and self._reference is not None, "begin comes first"
        found = make_pair_batches(batch.sequences, config, batch.weights)
        with self._reference.at_work(self._state) as frozen:
            statistics = forward_chunks(frozen, found)
        if statistics is None:
            return found
        return [
            replace(micro_batch, behaviour_logprobs=values[0].detach())
            for micro_batch, values in zip(found, statistics, strict=True)
        ]

    def least_tokens(self, config: Config) -> int:
        """Returns the longest pair."""
        return longest_pair(config)

    def objective(self, batch: SupervisedBatch) -> LossFn:
        """Returns the loss of the pairs of a micro-batch."""

        def loss(
            statistics: torch.Tensor, micro_batch: MicroBatch, _index: int
        ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            sums = _sums(statistics[0], micro_batch, len(batch.sequences))
            return counted_once(*self.loss(*sum_over(sums, groups.context_group())))

        return loss

    @property
    def loss(self) -> Loss:
        """The loss of (log-probs, log-ratios, tokens) of replies, as the section sets it."""
        section = self.section

        def of(
            logprobs: torch.Tensor, ratios: torch.Tensor, tokens: torch.Tensor
        ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            return dpo_loss(
                logprobs,
                ratios,
                tokens,
                beta=section.beta,
                length_normalized=section.length_normalized,
                sft_weight=section.sft_weight,
                label_smoothing=section.label_smoothing,
            )

        return of

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Returns loss and metrics on the held-out pairs: means over all pairs, and accuracy by kind."""
        if not self.held_out:
            return {}
        sums = self.reply_sums(state, self.held_out)
        rewards = implicit_rewards(
            *sums[1:], beta=self.section.beta, length_normalized=self.section.length_normalized
        ).tolist()
        self.scored = [
            scored_pair(pair, *rewards[2 * place : 2 * place + 2]) for place, pair in enumerate(self.held_out)
        ]
        total, metrics = self.loss(*sums)
        count = len(self.held_out)
        found = {f"validation/{name}": float(value) / count for name, value in {"loss": total, **metrics}.items()}
        by_kind = accuracies(self.scored, lambda pair: pair.kind)
        return found | {f"validation/accuracy/{kind}": share.value for kind, share in by_kind.items()}

    def reply_sums(self, state: TrainState, pairs: Sequence[PolicyPair]) -> torch.Tensor:
        """Returns [3, replies] fp64 on every rank: log-prob, log-ratio to the reference, and number of tokens.

        Collective, forward only.
        """
        found = []
        for start in range(0, len(pairs), _PAIRS_AT_A_TIME):
            batch = policy_pair_batch(pairs[start : start + _PAIRS_AT_A_TIME])
            micro_batches = self.micro_batches(batch, state.config)
            statistics = forward_chunks(state.chunks, micro_batches)
            sums = torch.zeros(3, len(batch.sequences), dtype=torch.float64, device=platform.device())
            if statistics is not None:
                for micro_batch, values in zip(micro_batches, statistics, strict=True):
                    sums += _sums(values[0].double(), micro_batch, len(batch.sequences))
                dist.all_reduce(sums, group=groups.data_context_group())
            dist.broadcast(sums, src=groups.last_stage_rank(), group=groups.pipeline_group())
            found.append(sums.cpu())
        return torch.cat(found, 1)

    def export(self, state: TrainState, folder: Path) -> None:
        """Writes the policy with its tokenizer."""
        export_policy(state.policies, folder, config_files_from=state.config.tokenizer_dir())


def prepare(config: Config) -> tuple[Config, DpoTask]:
    """Starts the layout and reads the pairs; returns the config with the steps of the epochs.

    All ranks call it. Raises LwzError.
    """
    launch.initialize(config)
    check_dpo(config)
    check_supervised_start(config)
    task = build_task(config)
    return with_epochs(config, task.source.total), task


def check_dpo(config: Config) -> None:
    """Checks the requirements of the stage beyond single fields. Raises ConfigError."""
    if not config.dpo.pairs:
        raise ConfigError("dpo.pairs", [], "name files of preference pairs (lwz pairs)")
    if config.architecture().head != "language":
        raise ConfigError("model.head", "scalar", "is a reward model: preference optimisation trains a policy")
    if config.lora.rank and config.checkpoint.load is not None:
        advice = (
            "the reference is the model without a LoRA adapter: merge this one into it (lwz convert export), "
            "and name that folder in model.hf"
        )
        raise ConfigError("checkpoint.load", config.checkpoint.load, advice)
    check_pair_size(config)
    check_supervised(config)


def build_task(config: Config) -> DpoTask:
    """Reads and tokenises the pairs. Every rank holds all of them. Raises DataError."""
    section = config.dpo
    train_pairs, held_out = _read(config, "dpo.pairs"), _read(config, "dpo.held_out")
    shared = {pair.pair.prompt for pair in train_pairs} & {pair.pair.prompt for pair in held_out}
    if shared and groups.is_rank_zero():
        log.warning("%d requests stand in training and held-out pairs, e.g. %.80s", len(shared), min(shared))
    source = PairSource(
        train_pairs,
        policy_pair_batch,
        section="dpo",
        seed=config.run.seed,
        shuffle=config.data.shuffle,
        epochs=section.epochs,
    )
    return DpoTask(section, source, held_out)


def _read(config: Config, key: str) -> list[PolicyPair]:
    section, tokenizer = config.dpo, Tokenizer(config.tokenizer_dir())
    tokenize = partial(
        tokenize_policy_pairs,
        encode=tokenizer.encode,
        end=min(tokenizer.eos_ids),
        form=ReplyForm(config.data.template, section.wrap_answer, section.separator, end_texts(tokenizer)),
        maximum_tokens=config.training.sequence_length,
    )
    files = section.pairs if key == "dpo.pairs" else section.held_out
    return read_files(files, key, tokenizer, tokenize, any_rejected=True)


def _sums(logprobs: torch.Tensor, micro_batch: MicroBatch, count: int) -> torch.Tensor:
    """Returns [3, count] of this rank's tokens: log-prob, log-ratio to the reference and number of labels of each reply."""
    device = logprobs.device
    reference = micro_batch.behaviour_logprobs.to(device)
    owners = torch.where(micro_batch.source >= 0, micro_batch.sequence_ids, -1).to(device)
    return sequence_sums(torch.stack([logprobs, logprobs - reference, torch.ones_like(logprobs)]), owners, count)
