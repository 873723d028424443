"""A packed micro-batch for tests of losses."""

from __future__ import annotations

import torch

from megatron_lwz.algorithms.grpo import LossInputs

LENGTHS = (3, 5, 2)


def inputs(seed=0, lengths=LENGTHS, spread=0.3, **changes) -> LossInputs:
    """Packed sequences with two prompt tokens each (weight 0) and three padding tokens at the end."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.cat([torch.full((n + 2,), i) for i, n in enumerate(lengths)] + [torch.full((3,), -1)])
    weight = torch.cat([torch.tensor([0.0, 0.0] + [1.0] * n) for n in lengths] + [torch.zeros(3)])
    old = -torch.rand(len(ids), generator=generator) * 3
    noise = torch.randn(4, len(ids), generator=generator) * spread
    advantage = torch.randn(len(lengths) + 1, generator=generator)[ids]
    values = {
        "logprob": (old + noise[0]).requires_grad_(),
        "entropy": torch.rand(len(ids), generator=generator).requires_grad_(),
        "old": old,
        "behaviour": old + noise[1],
        "reference": old + noise[2],
        "advantage": advantage,
        "weight": weight,
        "sequence_ids": ids,
        "sequences": len(lengths),
    }
    return LossInputs(**(values | changes))
