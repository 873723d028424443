"""The embedding's gradient goes to its buffer row by row: torch's values, and no tensor as large as the embedding."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from megatron_lwz.config import Config, validate
from megatron_lwz.distributed import launch
from megatron_lwz.planner.live_bytes import LiveBytes
from megatron_lwz.training import optimizer
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import AccumulatingStep
from tests.support.tiny_step import loss, micro_batch

VOCABULARY, WIDTH = 40_000, 64


def config_of(*, tied: bool) -> Config:
    architecture = {
        "num_hidden_layers": 1, "hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "tie_word_embeddings": tied,
    }  # fmt: skip
    return validate({"model": {"architecture": architecture}, "training": {"precision": "fp32"}})


@pytest.fixture(autouse=True, scope="module")
def groups() -> Iterator[None]:
    launch.initialize(config_of(tied=True))
    yield
    launch.shutdown()


def gradients(state: TrainState) -> dict[str, torch.Tensor]:
    """Of two micro-batches, in which tokens recur."""
    step = AccumulatingStep(state)
    for last in (False, True):
        step.add([micro_batch(shift) for shift in (0, 3)], loss, last=last)
    policy = state.policies[0]
    return {name: weight.main_grad.clone() for name, weight in policy.named_parameters()}  # type: ignore[union-attr]


@pytest.mark.parametrize("tied", [True, False])
def test_the_gradients_are_torchs(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = gradients(build_train_state(config_of(tied=tied)))
    with monkeypatch.context() as patch:
        patch.setattr(optimizer, "add_embedding_gradients_by_row", lambda _: None)
        wanted = gradients(build_train_state(config_of(tied=tied)))
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6 * gradient.abs().max().item())


@pytest.mark.parametrize("tied", [True, False])
def test_no_tensor_as_large_as_the_embedding_is_made_for_it(tied: bool) -> None:
    state = build_train_state(config_of(tied=tied))
    step = AccumulatingStep(state)
    with LiveBytes() as live:
        step.add([micro_batch()], loss, last=True)
    given_to_autograd = 1 if tied else 2  # never touched
    assert live.peak < (given_to_autograd + 0.5) * VOCABULARY * WIDTH * 4
