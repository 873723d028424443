"""Continual pretraining: next-token prediction over packed documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_lwz.config import Config
from megatron_lwz.data.corpus import PackedBatch, PackedCorpus, open_corpus, read_documents
from megatron_lwz.data.examples import supervised_batch
from megatron_lwz.data.supervised import SupervisedBatch
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.distributed import launch
from megatron_lwz.errors import ConfigError
from megatron_lwz.training.profiler import Profiler
from megatron_lwz.training.run_folder import RunFolder
from megatron_lwz.training.start import check_supervised_start
from megatron_lwz.training.supervised import LanguageModeling, OnStep, check_supervised, run_task


def pretrain(config: Config, on_step: OnStep = lambda _step, _shown: None, profiler: Profiler | None = None) -> None:
    """Runs or resumes the pretraining of `config`. All ranks call it. Raises LwzError."""
    launch.initialize(config)
    check_pretrain(config)
    check_supervised_start(config, corpus=True)
    run = RunFolder(config, "pretrain")
    if run.finished:
        return
    corpus = open_corpus(config)
    held_out = corpus_validation(corpus, config) | validation_batches(config)
    task = LanguageModeling(CorpusSource(corpus), held_out, config.training.z_loss)
    run_task(config, run, task, on_step, profiler)


def check_pretrain(config: Config) -> None:
    """Checks the requirements of pretraining beyond single fields. Raises ConfigError."""
    if not config.data.corpus:
        raise ConfigError("data.corpus", [], "name the JSONL files with a `text` key")
    check_supervised(config)


class CorpusSource:
    """The corpus as batches of packed sequences."""

    def __init__(self, corpus: PackedCorpus) -> None:
        self._corpus = corpus

    def take(self, cursor: int, count: int) -> tuple[SupervisedBatch, int]:
        """Returns `count` packed sequences, starting at piece number `cursor`, and the cursor after them."""
        batch, after = self._corpus.take(cursor, count)
        labels = self._corpus.labels(cursor, after)
        return _every_prediction(batch, [" + ".join(labels[n] for n in each) for each in batch.members]), after


def corpus_validation(corpus: PackedCorpus, config: Config) -> dict[str, list[SupervisedBatch]]:
    """Returns the validation part of each source of a prepared corpus, at most `evaluation.sequences` of each."""
    size = config.training.sequences_per_step
    limit = math.ceil(config.evaluation.sequences / size)
    return {
        source: [_every_prediction(batch, [source] * len(batch)) for batch in corpus.validation(source, size, limit)]
        for source in corpus.validation_sources
    }


def validation_batches(config: Config) -> dict[str, list[SupervisedBatch]]:
    """Returns the documents of `data.validation`, cut at the sequence length, in batches of a step's size.

    Raises DataError.
    """
    if not config.data.validation:
        return {}
    length, size, tokenizer = (
        config.training.sequence_length,
        config.training.sequences_per_step,
        Tokenizer(config.tokenizer_dir()),
    )
    found = {}
    for name, files in config.data.validation.items():
        documents = read_documents([Path(file) for file in files], tokenizer.encode, min(tokenizer.eos_ids))
        pieces = [
            (f"{name}:{number}", tokens, torch.arange(len(tokens)) > 0)
            for number, document in enumerate(documents)
            for begin in range(0, len(document) - 1, length)
            for tokens in [torch.tensor(document[begin : begin + length + 1], dtype=torch.int32)]
        ][: config.evaluation.sequences]
        found[name] = [supervised_batch(pieces[at : at + size], "token") for at in range(0, len(pieces), size)]
    return found


def _every_prediction(batch: PackedBatch, ids: Sequence[str]) -> SupervisedBatch:
    """Trains every token of a piece except the first, all with the same weight."""
    weights = torch.ones(len(batch.tokens))
    weights[batch.starts] = 0.0
    return SupervisedBatch(batch, weights, len(batch.tokens) - len(batch.starts), ids)
