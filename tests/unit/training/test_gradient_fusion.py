"""Weight gradients added inside the matrix product: only where a gradient buffer exists, with the same sums."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import layers
from torch import Tensor, nn

from megatron_lwz.distributed import launch, optional
from megatron_lwz.training.gradient_fusion import APEX, fuse_gradient_accumulation
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.step import AccumulatingStep
from tests.support.layers_cases import policy_numbers
from tests.support.tiny_step import LAYERS, config_of, loss, micro_batch

PRODUCTS_OF_A_LAYER = 4
"""Queries, keys and values; the attention's output; gate and up; down."""


@pytest.fixture(autouse=True)
def _groups() -> Iterator[None]:
    yield
    launch.shutdown()


def install_apex(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Apex's extension as it is where it is installed, in plain torch. Returns the buffers that it adds to."""
    written: list[Tensor] = []

    def accumulate(inputs: Tensor, gradient: Tensor, total: Tensor) -> None:
        written.append(total)
        total.add_(gradient.t() @ inputs)

    monkeypatch.setattr(layers, APEX, SimpleNamespace(wgrad_gemm_accum_fp32=accumulate), raising=False)
    monkeypatch.setattr(layers, "_grad_accum_fusion_available", True)
    others = optional.unusable
    monkeypatch.setattr(optional, "unusable", lambda name: None if name == APEX else others(name))
    return written


def gradients() -> list[Tensor]:
    """The gradient buffers after two micro-batches."""
    config = config_of()
    launch.initialize(config)
    state = build_train_state(config)
    AccumulatingStep(state).add([micro_batch(), micro_batch(shift=5)], loss, last=True)
    found = [weight.main_grad.clone() for weight in state.policies[0].parameters()]
    launch.shutdown()
    return found


def test_the_sums_are_those_of_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients()
    written = install_apex(monkeypatch)
    for total, other in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(total, other)
    assert len(written) == 2 * LAYERS * PRODUCTS_OF_A_LAYER
    assert all(total.dtype == torch.float32 for total in written)


def test_a_model_without_gradient_buffers_keeps_autograds_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = policy_numbers("torch")
    written = install_apex(monkeypatch)
    for found, other in zip(policy_numbers("torch"), expected, strict=True):
        torch.testing.assert_close(found, other)
    assert not written


class EngineLinear(nn.Module):
    """A layer of Transformer Engine, as far as its switch goes."""

    fuse_wgrad_accumulation = False


def test_transformer_engine_needs_no_apex() -> None:
    model: Any = nn.Module()
    model.decoder = nn.Sequential(EngineLinear(), EngineLinear())
    assert fuse_gradient_accumulation([model]) == ["Transformer Engine"]
    assert all(layer.fuse_wgrad_accumulation for layer in model.decoder)
    model.decoder = nn.Sequential(nn.Linear(1, 1))
    assert fuse_gradient_accumulation([model]) == []
