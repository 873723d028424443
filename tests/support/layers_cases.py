"""The layer ops against fp64 autograd of their formulas, on shapes that fill no block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_lwz.config import validate
from megatron_lwz.distributed import launch, platform
from megatron_lwz.kernels.layers import LayerOps
from megatron_lwz.models.hf.load import RandomInit, load_policy
from megatron_lwz.models.qwen import build_policy

EPS = 1e-6


@dataclass(frozen=True)
class Case:
    """An op, its formula (fp64) and its inputs; those before `constant` get gradients."""

    op: Callable[[LayerOps], Callable[..., Tensor | tuple[Tensor, ...]]]
    formula: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: tuple[Tensor, ...]
    differentiable: int

    def errors(self, ops: LayerOps, dtype: torch.dtype, device: str = "cpu") -> list[float]:
        """Relative errors of outputs and gradients in the Frobenius norm. Two runs must agree in every bit."""
        narrow = [x.to(device, dtype) for x in self.inputs[: self.differentiable]]
        constants = [x.to(device) for x in self.inputs[self.differentiable :]]
        found, again = (self._run(self.op(ops), narrow, constants) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        assert all(x.dtype == dtype for x in found)
        exact = self._run(self.formula, [x.double() for x in narrow], [x.double() for x in constants])
        return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]

    def _run(self, function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: list[Tensor], constants: list[Tensor]):
        leaves = [x.detach().requires_grad_() for x in inputs]
        outputs = function(*leaves, *constants)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator().manual_seed(5)
        weights = [torch.randn(x.shape, generator=generator).to(x.device).to(inputs[0].dtype) for x in outputs]
        return [*outputs, *torch.autograd.grad(outputs, leaves, [w.to(inputs[0].dtype) for w in weights])]


def _norm_formula(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt()


def _rotate_formula(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As multiplication of complex numbers."""
    turns = torch.complex(cos, sin)[:, None]

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        product = torch.complex(first, second) * turns
        return torch.cat((product.real, product.imag), -1)

    return turned(query), turned(key)


def _swiglu_formula(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return gate / (1 + (-gate).exp()) * up


def _norm(*shape: int) -> Case:
    inputs = (torch.randn(shape) * 3, torch.randn(shape[-1]))
    return Case(lambda ops: lambda x, w: ops.rms_norm(x, w, EPS), _norm_formula, inputs, 2)


def _rotate(tokens: int, queries: int, keys: int, half: int) -> Case:
    """Positions start again at 0 in the middle, as in a pack."""
    angles = torch.outer(torch.arange(tokens) % (tokens // 2 + 1), 1e4 ** -(torch.arange(half) / half))
    inputs = (torch.randn(tokens, queries, 2 * half), torch.randn(tokens, keys, 2 * half), angles.cos(), angles.sin())
    return Case(lambda ops: ops.rotate, _rotate_formula, inputs, 2)


def _swiglu(*shape: int) -> Case:
    """`shape` is that of the output."""
    inputs = (torch.randn(*shape[:-1], 2 * shape[-1]) * 2,)
    return Case(lambda ops: ops.swiglu, _swiglu_formula, inputs, 1)


def cases() -> dict[str, Case]:
    """By name. Seeded, so that every caller sees the same numbers."""
    torch.manual_seed(9)
    return {
        "norm": _norm(11, 1, 96),
        "norm of one row": _norm(1, 1, 64),
        "norm, wide": _norm(5, 1, 1100),
        "rotate": _rotate(7, 8, 2, 16),
        "rotate, odd": _rotate(9, 5, 1, 12),
        "swiglu": _swiglu(6, 1, 100),
        "swiglu, two blocks": _swiglu(3, 1, 1300),
        "norm of a vector": _norm(64),
        "norm of heads": _norm(3, 1, 2, 16),
        "swiglu of a vector": _swiglu(64),
        "swiglu of heads": _swiglu(3, 1, 2, 16),
    }


def strided_heads(tokens: int, groups: int, per_group: int, dim: int, **kind: Any) -> tuple[Tensor, Tensor]:
    """Leaves that lie like Megatron's heads in its fused projection [T, groups, (per_group + 2) · dim]; `kind`: see randn.

    The first query head of each group, and the keys.
    """
    mixed = torch.randn(tokens, groups, per_group + 2, dim, **kind)
    return mixed[:, :, 0].requires_grad_(), mixed[:, :, per_group].requires_grad_()


def policy_numbers(layers: str) -> list[Tensor]:
    """Log-prob, entropy and lse of a packed micro-batch, and the gradient of every weight."""
    architecture = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 61,
        "initializer_range": 0.5,
    }
    config = validate(
        {
            "model": {"architecture": architecture},
            "training": {"precision": "fp32", "recompute": "full"},
            "kernels": {"layers": layers},
        }
    )
    launch.initialize(config)
    try:
        (policy,) = build_policy(config)
        load_policy([policy], RandomInit(config.architecture(), seed=3))
        device = platform.device()
        starts = torch.tensor([0, 5, 11], dtype=torch.int32, device=device)
        packed = PackedSeqParams("thd", starts, starts, max_seqlen_q=6, max_seqlen_kv=6)
        tokens, labels = torch.randint(0, 61, (2, 1, 11), generator=torch.Generator().manual_seed(1)).to(device)
        positions = torch.tensor([[*range(5), *range(6)]], device=device)
        found = policy(tokens, positions, None, labels=labels, packed_seq_params=packed)
        found[0].sum().backward()
        return [found.detach(), *(weight.grad for weight in policy.parameters())]
    finally:
        launch.shutdown()
