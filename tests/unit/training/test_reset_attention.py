"""Documents of one packed sequence: strangers with `data.reset_attention`, in packing order without."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch

from megatron_lwz.config import Config, validate
from megatron_lwz.data.corpus import PackedBatch
from megatron_lwz.data.packing import unpack
from megatron_lwz.distributed import launch
from megatron_lwz.training.batching import make_micro_batches
from megatron_lwz.training.initial import initial_policy
from megatron_lwz.training.pretrain import CorpusSource
from megatron_lwz.training.step import forward_chunks
from tests.support.corpus import packed

DOCUMENTS = [[3, 9, 4, 11, 0], [7, 5, 13, 0], [2, 6, 8, 10, 12, 0]]
STARTS = (0, 5, 9, 15)


@pytest.fixture(autouse=True, scope="module")
def groups() -> Iterator[None]:
    yield
    launch.shutdown()


def config_of() -> Config:
    architecture = {
        "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 16, "initializer_range": 0.5,
    }  # fmt: skip
    return validate(
        {
            "model": {"architecture": architecture, "vocab_padding": 8},
            "training": {"precision": "fp32", "tokens_per_micro_batch": 32},
        }
    )


def logprobs(documents: list[list[int]], *, reset: bool) -> torch.Tensor:
    """Log-prob of every trained token, indexed like the packed tokens; 0 elsewhere."""
    config = config_of()
    launch.initialize(config)
    corpus = packed(documents, sequence_length=14, seed=0, shuffle=False, reset=reset)
    batch, _ = CorpusSource(corpus).take(0, 1)
    assert isinstance(batch.sequences, PackedBatch) and batch.sequences.starts.tolist() == list(STARTS[:3])
    assert len(batch.sequences) == (3 if reset else 1) and batch.denominator == 12
    micro_batches = make_micro_batches(batch.sequences, config, batch.weights)
    found = torch.zeros(len(batch.sequences.tokens))
    for micro_batch, statistics in zip(
        micro_batches, forward_chunks(initial_policy(config), micro_batches), strict=True
    ):
        unpack(statistics[0], micro_batch, found)
    return found


def changed_documents(reset: bool) -> list[bool]:
    """Which documents' log-probs a change in the second one changes, bit for bit."""
    other = [DOCUMENTS[0], [7, 14, 13, 0], DOCUMENTS[2]]
    difference = logprobs(DOCUMENTS, reset=reset) != logprobs(other, reset=reset)
    return [bool(difference[a:b].any()) for a, b in pairwise(STARTS)]


def test_with_reset_a_change_in_one_document_changes_no_log_prob_of_another() -> None:
    assert changed_documents(reset=True) == [False, True, False]


def test_without_reset_it_changes_those_packed_behind_it() -> None:
    assert changed_documents(reset=False) == [False, True, True]


def test_the_first_token_of_a_document_is_never_trained() -> None:
    for reset in (True, False):
        found = logprobs(DOCUMENTS, reset=reset)
        assert [index for index, value in enumerate(found.tolist()) if value == 0.0] == list(STARTS[:3])
