"""The published sizes, by their published parameter counts."""

from __future__ import annotations

import pytest

from megatron_lwz.config.presets import PRESETS

PUBLISHED = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
}
"""Elements in the safetensors files on the Hugging Face hub."""


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count(name):
    a = PRESETS[name]
    head = a.head_dim or a.hidden_size // a.num_attention_heads
    query, key_value = a.num_attention_heads * head, a.num_key_value_heads * head
    attention = a.hidden_size * (query + 2 * key_value) + (query + 2 * key_value) + query * a.hidden_size
    layer = attention + 3 * a.hidden_size * a.intermediate_size + 2 * a.hidden_size
    embeddings = a.vocab_size * a.hidden_size * (1 if a.tie_word_embeddings else 2)
    assert a.num_hidden_layers * layer + embeddings + a.hidden_size == PUBLISHED[name]
