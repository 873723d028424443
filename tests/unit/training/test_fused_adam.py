"""An optimizer that behaves like the fused Adams of Transformer Engine and Apex: saved before, between and after steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import megatron.core.optimizer
import pytest
import torch
from megatron.core.optimizer import distrib_optimizer

from megatron_lwz.distributed import launch
from megatron_lwz.training.checkpoint import load_checkpoint, run_state
from megatron_lwz.training.checkpoint_writer import write_snapshot
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.optimizer import parts
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import train_step
from tests.support.tiny_step import TOKENS, config_of, loss, micro_batch


class FusedAdam(torch.optim.Optimizer):
    """Adam whose state begins with the first step, with one step count per group and none per parameter."""

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, adam_w_mode: bool,
        capturable: bool = False,
    ) -> None:  # fmt: skip
        """Takes what both releases of Megatron-Core give: `capturable` (for CUDA graphs) is of 0.19."""
        assert adam_w_mode and not capturable
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert closure is None
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if len(state) == 0:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                first = state["exp_avg"].lerp_(parameter.grad, 1 - beta1) / (1 - beta1 ** group["step"])
                second = state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                second = (second / (1 - beta2 ** group["step"])).sqrt() + group["eps"]
                parameter.addcdiv_(first, second, value=-group["lr"])


@pytest.fixture(autouse=True)
def _fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Megatron-Core as it is where Transformer Engine is installed."""
    for module in (megatron.core.optimizer, distrib_optimizer):
        monkeypatch.setattr(module, "Adam", FusedAdam)
    monkeypatch.setattr(megatron.core.optimizer, "USING_PYTORCH_OPTIMIZER", False)
    monkeypatch.setattr(distrib_optimizer, "HAVE_APEX_OR_TE", True)
    monkeypatch.setattr(distrib_optimizer, "USING_TE_OPTIMIZER", True)
    yield
    launch.shutdown()


def state_of(distributed: bool) -> TrainState:
    config = config_of("bf16", distributed=distributed)
    launch.initialize(config)
    return build_train_state(config)


def step(state: TrainState) -> None:
    train_step(state, [micro_batch(state.step)], loss, TOKENS)
    state.step += 1


def numbers(state: TrainState) -> list[torch.Tensor]:
    """Masters, moments and step counts."""
    (part,) = parts(state.optimizer)
    found = []
    for group in part.optimizer.param_groups:
        found.append(torch.tensor(group.get("step", 0)))
        for parameter in group["params"]:
            entry = part.optimizer.state[parameter]
            assert set(entry) == {"exp_avg", "exp_avg_sq"}
            found += [parameter.detach().clone(), *(entry[name].clone() for name in sorted(entry))]
    return found


@pytest.mark.parametrize("distributed", [True, False])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_run_goes_on_from_what_was_saved(tmp_path: Path, distributed: bool, steps: int) -> None:
    """Also from a checkpoint of before the first applied step: a run may be ended, or refuse its steps, until then."""
    state = state_of(distributed)
    for _ in range(steps):
        step(state)
    write_snapshot(run_state(state, {}), tmp_path / "saved")
    saved = numbers(state)
    step(state)
    expected = numbers(state)
    launch.shutdown()
    again = state_of(distributed)
    load_checkpoint(again, tmp_path / "saved")
    for found, other in zip(numbers(again), saved, strict=True):
        assert torch.equal(found, other)
    step(again)
    for found, other in zip(numbers(again), expected, strict=True):
        assert torch.equal(found, other)
