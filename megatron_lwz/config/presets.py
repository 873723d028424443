"""The numbers of the published models (their config.json files)."""

from __future__ import annotations

from megatron_lwz.config.sections import Architecture


def _qwen(layers: int, hidden: int, ffn: int, heads: tuple[int, int], vocab: int, **rest: object) -> Architecture:
    """`heads` = (attention heads, key-value heads); `rest` = fields that are not the class's defaults."""
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": ffn, "vocab_size": vocab}
    return Architecture.model_validate(
        sizes | {"num_attention_heads": heads[0], "num_key_value_heads": heads[1]} | rest
    )


_LONG = {"max_position_embeddings": 131072}
_QWEN3 = {"model_type": "qwen3", "head_dim": 128}
_TIED = {"tie_word_embeddings": True}

PRESETS: dict[str, Architecture] = {
    "qwen2.5-0.5b": _qwen(24, 896, 4864, (14, 2), 151936, tie_word_embeddings=True),
    "qwen2.5-1.5b": _qwen(28, 1536, 8960, (12, 2), 151936, tie_word_embeddings=True, **_LONG),
    "qwen2.5-3b": _qwen(36, 2048, 11008, (16, 2), 151936, tie_word_embeddings=True),
    "qwen2.5-7b": _qwen(28, 3584, 18944, (28, 4), 152064, **_LONG),
    "qwen2.5-14b": _qwen(48, 5120, 13824, (40, 8), 152064, rms_norm_eps=1e-5, **_LONG),
    "qwen2.5-32b": _qwen(64, 5120, 27648, (40, 8), 152064, rms_norm_eps=1e-5, **_LONG),
    "qwen2.5-72b": _qwen(80, 8192, 29568, (64, 8), 152064, rms_norm_eps=1e-5, **_LONG),
    "qwen3-0.6b": _qwen(28, 1024, 3072, (16, 8), 151936, **_QWEN3, **_TIED),
    "qwen3-1.7b": _qwen(28, 2048, 6144, (16, 8), 151936, **_QWEN3, **_TIED),
    "qwen3-4b": _qwen(36, 2560, 9728, (32, 8), 151936, **_QWEN3, **_TIED),
    "qwen3-8b": _qwen(36, 4096, 12288, (32, 8), 151936, **_QWEN3),
    "qwen3-14b": _qwen(40, 5120, 17408, (40, 8), 151936, **_QWEN3),
    "qwen3-32b": _qwen(64, 5120, 25600, (64, 8), 151936, **_QWEN3, max_position_embeddings=40960),
}
"""By name: the base models, and Qwen3-32B, which has none. `rope_theta` is 1e6 in all of them."""
