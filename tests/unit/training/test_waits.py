"""How often a step reads a number back: on a GPU the host waits there for all that it launched."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core.optimizer import clip_grads
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_lwz.distributed import launch
from megatron_lwz.training import multi_tensor, step
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.step import train_step
from tests.support.tiny_step import TOKENS, config_of, loss, micro_batch


class Reads(TorchDispatchMode):
    """Counts the reads of one number, by `item()`, `float()`, `if` or `torch.tensor`, by the line that reads.

    Those of torch's Adam are left out: its step counts lie in host memory. Also counts all operations by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        self.operations[operation._schema.name] += 1
        if operation is torch.ops.aten._local_scalar_dense.default:
            frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
            if frames[-2].name != "step_with_ready_grads":
                self.places[f"{frames[-2].filename}:{frames[-2].lineno}"] += 1
        return operation(*arguments, **(options or {}))


@pytest.fixture(autouse=True)
def _groups() -> Iterator[None]:
    yield
    launch.shutdown()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_end_of_a_step_does_not_read_tensor_by_tensor(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "check_memory", lambda *_: None)  # a GPU has none
    config = config_of(precision)
    launch.initialize(config)
    state = build_train_state(config)
    train_step(state, [micro_batch()], loss, TOKENS)
    with Reads() as reads:
        result = train_step(state, [micro_batch(), micro_batch(3)], loss, 2 * TOKENS)
    parameters = sum(1 for policy in state.policies for _ in policy.parameters())
    assert result.grad_norm > config.optimizer.clip_grad  # so the gradients were scaled too
    assert clip_grads.l2_norm_impl is multi_tensor.l2_norm
    assert sum(reads.places.values()) <= 3 < parameters, reads.places


def test_norm_and_scaling_are_those_of_megatron_core() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(shape) for shape in ((3, 4), (5,), (2, 1, 7))]
    buffer = torch.zeros(1, dtype=torch.int)
    with Reads() as reads:
        norm, _ = multi_tensor.l2_norm(65536, buffer, [tensors], False)
    assert not reads.places and reads.operations["aten::_foreach_norm"] == 1
    expected = torch.cat([tensor.double().flatten() for tensor in tensors]).norm()
    assert norm.shape == (1,)
    torch.testing.assert_close(norm[0].double(), expected, rtol=1e-6, atol=0)
    scaled = [tensor.clone() for tensor in tensors]
    multi_tensor.scale(65536, buffer, [scaled, scaled], 0.37)
    for found, tensor in zip(scaled, tensors, strict=True):
        assert torch.equal(found, tensor * 0.37)


def test_fused_kernels_that_are_installed_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = object()
    monkeypatch.setattr(clip_grads, "l2_norm_impl", fused)
    monkeypatch.setattr(clip_grads, "multi_tensor_scale_impl", fused)
    multi_tensor.install()
    assert clip_grads.l2_norm_impl is fused and clip_grads.multi_tensor_scale_impl is fused
