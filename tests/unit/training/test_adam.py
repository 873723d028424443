"""EagerAdamW is torch's AdamW, bit for bit, without torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from megatron_lwz.training.adam import EagerAdamW, eager

COMPILER = """
import sys
import torch
from megatron_lwz.training.adam import EagerAdamW
from tests.unit.training.test_adam import trained
trained(EagerAdamW)
assert not {"torch._dynamo", "torch._inductor"} & set(sys.modules)
"""


def trained(kind: type[torch.optim.AdamW]) -> list[torch.Tensor]:
    """Weights and Adam's state after some steps, with the state stored and loaded, and a group added on the way."""
    torch.manual_seed(1)
    first, second = (
        torch.nn.Parameter(torch.randn(*shape)) for shape in ((5, 3), (2**19 + 7,))
    )  # the second in pieces
    optimizer = kind([first], lr=0.1, betas=(0.9, 0.95), weight_decay=0.01)
    optimizer.add_param_group({"params": [second], "weight_decay": 0.0})
    for _ in range(4):
        for parameter in (first, second):
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.zero_grad()
        assert first.grad is None and first.requires_grad
    states = [optimizer.state[parameter] for parameter in (first, second)]
    return [first.detach(), second.detach(), *(state[name] for state in states for name in sorted(state))]


def test_it_computes_what_torchs_does() -> None:
    pairs = zip(trained(EagerAdamW), trained(torch.optim.AdamW), strict=True)
    assert all(torch.equal(mine, usual) for mine, usual in pairs)


def test_torchs_class_is_replaced_inside_the_block_only() -> None:
    usual = torch.optim.AdamW
    with pytest.raises(KeyError), eager():
        assert torch.optim.AdamW is EagerAdamW and issubclass(EagerAdamW, usual)
        raise KeyError
    assert torch.optim.AdamW is usual


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU Megatron-Core imports torch's compiler")
def test_no_call_imports_torchs_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", COMPILER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
