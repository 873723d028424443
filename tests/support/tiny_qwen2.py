"""A tiny Qwen2 or Qwen3 by transformers with everything random: its own zero biases and unit norms would hide mistakes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SIZES = {
    "vocab_size": 101,  # odd: padded rows must not count
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}


YARN = {"rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
"""Of a pretraining on so few tokens that even short texts are in the part that YaRN changes."""
QWEN3: dict[str, Any] = {"model_type": "qwen3", "head_dim": 24, "rope_parameters": YARN}
"""Changes that make the tiny model a Qwen3 with heads of a size of their own, and with YaRN."""


def tiny_qwen2(*, seed: int = 0, model_type: str = "qwen2", **changes: Any) -> Any:
    """transformers' model in fp32; `changes` are keys of its config."""
    import transformers

    title = {"qwen2": "Qwen2", "qwen3": "Qwen3"}[model_type]
    config = getattr(transformers, f"{title}Config")(**SIZES | changes)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{title}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.normal_(1, 0.2)
    return model


def write_tiny_qwen2(folder: Path, *, seed: int = 0, **changes: Any) -> Any:
    """Writes the model as a Hugging Face folder, without a tokenizer; returns it."""
    model = tiny_qwen2(seed=seed, **changes)
    model.save_pretrained(folder)
    return model


def write_word_tokenizer(folder: Path, words: Sequence[str], special: Sequence[str] = ()) -> int:
    """A tokenizer whose tokens are `<|endoftext|>` (id 0), `special` and `words`; returns their number."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<|endoftext|>", *special]
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return len(vocabulary)
