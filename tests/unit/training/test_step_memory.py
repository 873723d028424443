"""A step that cannot fit in the memory of a machine ends in one line with what would fit, and changes nothing."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from megatron_lwz.config import Config, validate
from megatron_lwz.distributed import host_memory, launch
from megatron_lwz.errors import OutOfMemory
from megatron_lwz.planner.live_bytes import LiveBytes
from megatron_lwz.training import step_memory
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.layer_bytes import layer_bytes
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import AccumulatingStep, train_step
from megatron_lwz.types import MicroBatch
from tests.support.tiny_step import loss, micro_batch

TOKENS = 1024
MODEL = {
    "num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def groups() -> Iterator[None]:
    launch.initialize(config_of())
    yield
    launch.shutdown()


def config_of(recompute: str = "none", **settings: Any) -> Config:
    training = {"precision": "fp32", "recompute": recompute, "tokens_per_micro_batch": TOKENS}
    return validate({"model": {"architecture": MODEL}, "training": training, **settings})


def state_of(config: Config) -> TrainState:
    state = build_train_state(config)
    state.room.least_tokens = 256
    return state


def sure(state: TrainState, batch: MicroBatch, monkeypatch: pytest.MonkeyPatch) -> float:
    """Bytes that a step with this micro-batch surely needs."""
    found: list[float] = []
    real = step_memory._need
    with monkeypatch.context() as patch:
        patch.setattr(step_memory, "_need", lambda *given: found.append(real(*given).surely) or real(*given))
        step_memory.check_memory(state, [batch])
    return found[0]


@pytest.mark.parametrize(("recompute", "settings"), [
    ("none", {}), ("selective", {}), ("full", {}), ("none", {"lora": {"rank": 4}}),
])  # fmt: skip
def test_what_is_surely_needed_is_less_than_what_the_tensors_of_a_step_take(
    recompute: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, batch = state_of(config_of(recompute, **settings)), micro_batch(tokens=TOKENS)
    needed = sure(state, batch, monkeypatch)
    with LiveBytes() as live:
        train_step(state, [batch], loss, TOKENS)
    assert 0.4 < needed / live.peak < 1.0


def test_a_step_that_cannot_fit_changes_nothing_and_runs_with_what_its_error_advises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = micro_batch(tokens=TOKENS)
    needed = sure(state_of(config_of()), batch, monkeypatch)
    monkeypatch.setattr(host_memory, "free_memory", lambda: int(0.9 * needed))
    monkeypatch.setattr(host_memory, "free_swap", lambda: 0)
    state = state_of(config_of())
    before = [parameter.clone() for policy in state.policies for parameter in policy.parameters()]
    with pytest.raises(
        OutOfMemory, match=r"^step 1: micro-batches of 1,024 tokens do not fit .* free: set "
    ) as refused:
        train_step(state, [batch], loss, TOKENS)
    after = [parameter for policy in state.policies for parameter in policy.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) and state.step == 0
    advised = re.search(r"set training\.tokens_per_micro_batch=(\d+)$", str(refused.value))
    fitting = int(advised[1]) if advised else 0
    assert 256 <= fitting < TOKENS
    train_step(state_of(config_of()), [micro_batch(tokens=fitting)] * 2, loss, TOKENS)

    state.room.least_tokens = TOKENS  # one sequence is as long: a smaller micro-batch would be refused
    with pytest.raises(OutOfMemory, match=r"training\.recompute=full"):
        train_step(state, [batch], loss, TOKENS)
    monkeypatch.setattr(host_memory, "free_swap", lambda: int(needed))
    train_step(state, [batch], loss, TOKENS)


def test_a_step_that_may_not_fit_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = state_of(config_of())
    needed = sure(state, micro_batch(tokens=TOKENS), monkeypatch)
    state.room.tokens = 0
    monkeypatch.setattr(host_memory, "free_memory", lambda: int(1.05 * needed))
    with caplog.at_level(logging.WARNING, "megatron_lwz"):
        for _ in range(2):
            train_step(state, [micro_batch(tokens=TOKENS)], loss, TOKENS)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "lower training.tokens_per_micro_batch" in warnings[0]


@pytest.mark.parametrize("real", [False, True])
def test_a_lack_of_memory_in_a_step_is_one_line_with_advice(real: bool) -> None:
    def full(*_: Any) -> Any:
        if real:
            torch.empty(2**60, dtype=torch.uint8)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of …")

    state = state_of(config_of())
    with pytest.raises(OutOfMemory) as found:
        AccumulatingStep(state).add([micro_batch()], full, last=True)
    size = f"{2**60} bytes" if real else "2.00 GiB"
    assert str(found.value) == (
        f"out of memory (tried to allocate {size}) in a step with micro-batches of up to 24 tokens: "
        "set training.recompute=full, or raise parallel.context or parallel.tensor"
    )


def test_a_layer_that_was_measured_keeps_nothing() -> None:
    chunk = state_of(config_of()).chunks[0]
    layer_bytes(chunk)  # angles stay, for the next step
    with LiveBytes() as live:
        layer_bytes(chunk)
        assert live.peak > 0
        live.begin()
    assert live.peak == 0
