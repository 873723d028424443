"""The FLOPs formula against torch's own counter on transformers' Qwen2, and its shape."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_lwz.config import Architecture
from megatron_lwz.config.flops import sequence_flops

ARCHITECTURE = Architecture(
    num_hidden_layers=3,
    hidden_size=48,
    intermediate_size=80,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=200,
)


@pytest.mark.parametrize("length", [16, 64])
def test_matches_the_operations_torch_counts(length):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**ARCHITECTURE.model_dump(exclude={"head_dim", "rope_theta"}), attn_implementation="eager")
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, length, dtype=torch.int64), use_cache=False)
    # The eager model computes the whole square of attention scores; causal attention needs half of it.
    half_square = 2 * ARCHITECTURE.num_hidden_layers * ARCHITECTURE.hidden_size * length**2
    assert counter.get_total_flops() == pytest.approx(sequence_flops(ARCHITECTURE, length) + half_square)


def test_splitting_a_sequence_saves_only_attention():
    whole, halves = sequence_flops(ARCHITECTURE, 200), 2 * sequence_flops(ARCHITECTURE, 100)
    assert whole - halves == pytest.approx(2 * ARCHITECTURE.num_hidden_layers * 48 * (200**2 - 2 * 100**2))
