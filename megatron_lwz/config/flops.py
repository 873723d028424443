"""The FLOPs formula that the balancer, throughput metrics and plans share."""

from __future__ import annotations

from megatron_lwz.config.sections import Architecture
from megatron_lwz.config.tree import Config


def training_passes(config: Config) -> float:
    """FLOPs of forward and backward pass, in forward passes: three, or two of a frozen model with LoRA.

    A backward pass computes the gradients of inputs and of weights, each a forward pass's work. Those of the adapters, and
    the second half of attention's, are left out.
    """
    return 3.0 if config.adapter() is None else 2.0


def sequence_flops(arch: Architecture, length: int) -> float:
    """Floating-point operations of one forward pass over one sequence of `length` tokens (a multiply-add is two).

    Matrix products only: projections, MLP, output layer, and causal attention over half of length². A training step is
    `training_passes` times this.
    """
    head = arch.head_size
    query, key_value = arch.num_attention_heads * head, arch.num_key_value_heads * head
    weights = arch.hidden_size * (2 * query + 2 * key_value + 3 * arch.intermediate_size)
    attention = query * length  # scores and values over `length`² / 2 pairs each
    outputs = arch.vocab_size if arch.head == "language" else 1
    per_token = 2.0 * (arch.num_hidden_layers * (weights + attention) + arch.hidden_size * outputs)
    return length * per_token
