"""The FLOPs formula against a count of the matrix products' weights."""

from __future__ import annotations

import pytest

from megatron_lwz.config.flops import sequence_flops
from megatron_lwz.config.presets import PRESETS


def test_short_sequences_cost_two_per_weight_and_token() -> None:
    weights = 6.53e9  # Qwen2.5-7B's card: 6.53 B non-embedding parameters; plus the output layer's products
    arch = PRESETS["qwen2.5-7b"]
    expected = 2 * (weights + arch.hidden_size * arch.vocab_size)
    assert sequence_flops(arch, 1) == pytest.approx(expected, rel=0.01)


def test_attention_makes_long_sequences_dearer_than_their_share() -> None:
    arch = PRESETS["qwen2.5-7b"]
    attention = 2.0 * arch.num_hidden_layers * arch.num_attention_heads * 128
    excess = sequence_flops(arch, 16_384) - 2 * sequence_flops(arch, 8_192)
    assert excess == pytest.approx(attention * (16_384**2 - 2 * 8_192**2))
