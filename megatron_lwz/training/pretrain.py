"""Continual pretraining: next-token prediction over packed documents. One flat loop, the same state as every stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from megatron_lwz.algorithms.language_modeling import language_modeling_loss
from megatron_lwz.config import Config
from megatron_lwz.data.corpus import Corpus, read_documents
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.distributed import groups, launch
from megatron_lwz.errors import ConfigError
from megatron_lwz.kernels.linear_logprob import AutogradTokenLoss, TokenLoss
from megatron_lwz.metrics import MetricsWriter
from megatron_lwz.models.hf.export import export_policy
from megatron_lwz.training.batching import make_micro_batches
from megatron_lwz.training.checkpoint import load_checkpoint, save_checkpoint
from megatron_lwz.training.run_folder import RunFolder, due
from megatron_lwz.training.state import build_train_state
from megatron_lwz.training.step import StepResult, train_step
from megatron_lwz.types import MicroBatch

OnStep = Callable[[int, Mapping[str, float]], None]
"""Told of every step and the metrics worth showing, on every rank."""


def pretrain(config: Config, on_step: OnStep = lambda _step, _shown: None) -> None:
    """Runs or resumes the pretraining of `config`. All ranks call it.

    Leaves checkpoints, metrics.jsonl, summary.json and, in `hf/`, the trained weights in Hugging Face's format in the
    run folder. A resumed run repeats an undisturbed one bit for bit under the same layout.
    """
    launch.initialize(config)
    check_pretrain(config)
    started = time.monotonic()
    corpus = build_corpus(config)
    run = RunFolder(config)
    state = build_train_state(config)
    cursor = load_checkpoint(state, run.resume)["cursor"] if run.resume else 0
    writer = MetricsWriter(run.root, config.logging.tensorboard) if groups.is_rank_zero() else None

    while state.step < config.training.steps:
        begun = time.monotonic()
        batch, cursor = corpus.take(cursor, config.training.sequences_per_step)
        micro_batches = make_micro_batches(batch, config, torch.ones(len(batch.tokens)))
        predictions = len(batch.tokens) - len(batch)
        result = train_step(state, micro_batches, _loss, predictions, _token_loss)
        state.step += 1
        metrics = step_metrics(result, predictions, time.monotonic() - begun)
        if writer:
            writer.write(state.step, metrics)
        on_step(state.step, {name: metrics[name] for name in ("loss", "tokens_per_second")})
        if due(state.step, config.checkpoint.interval, config):
            save_checkpoint(state, run.checkpoints, {"cursor": cursor})

    export_policy(state.policies, run.hf, config_files_from=config.tokenizer_dir())
    if writer:
        writer.close(time.monotonic() - started)


def check_pretrain(config: Config) -> None:
    """What pretraining needs beyond single fields. Raises ConfigError."""
    training = config.training
    if not config.data.corpus:
        raise ConfigError("data.corpus", [], "name the JSONL files with a `text` key")
    if training.tokens_per_micro_batch < training.sequence_length:
        raise ConfigError(
            "training.tokens_per_micro_batch",
            training.tokens_per_micro_batch,
            f"must hold one sequence of training.sequence_length = {training.sequence_length} tokens",
        )


def build_corpus(config: Config) -> Corpus:
    """Reads and tokenises `data.corpus`; every rank holds it. Raises DataError or ConfigError."""
    tokenizer = Tokenizer(config.tokenizer_dir())
    documents = read_documents([Path(path) for path in config.data.corpus], tokenizer.encode, min(tokenizer.eos_ids))
    return Corpus(
        documents,
        sequence_length=config.training.sequence_length,
        seed=config.run.seed,
        shuffle=config.data.shuffle,
    )


def step_metrics(result: StepResult, tokens: int, seconds: float) -> dict[str, float]:
    """One row of metrics.jsonl: `loss` and `entropy` in nats per token."""
    return {
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "lr": result.lr,
        "entropy": result.metrics["entropy"] / result.metrics["tokens"],
        "tokens": float(tokens),
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
    }


def _loss(
    statistics: torch.Tensor, micro_batch: MicroBatch, _index: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return language_modeling_loss(statistics, micro_batch.weights)


def _token_loss(micro_batch: MicroBatch, _index: int) -> TokenLoss:
    """The same loss, for the gradient in the forward pass."""

    def loss(*columns: torch.Tensor) -> torch.Tensor:
        *statistics, rows = columns
        return language_modeling_loss(torch.stack(statistics), micro_batch.weights[rows])[0]

    return AutogradTokenLoss(loss, micro_batch.labels.numel())
