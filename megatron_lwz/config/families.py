"""The families of decoders that can be trained. One entry of `FAMILIES` holds all that distinguishes a family.

All of them are decoders with grouped-query attention, RMSNorm, SwiGLU and RoPE:

- **Qwen2.5** (arXiv 2412.15115, section 2): a bias on query, key and value;
- **Qwen3**, the dense models (arXiv 2505.09388, section 2): no such bias; each head's query and key pass an RMSNorm before
  they are rotated, and the size of a head does not follow from the model's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Family:
    """What distinguishes one family from the others."""

    title: str
    language: str
    """transformers' class of a policy. Files name it in `architectures`."""
    scalar: str
    """transformers' class of a reward model."""
    qkv_bias: bool
    """Whether query, key and value have a bias."""
    qk_norm: bool
    """Whether an RMSNorm over the size of a head is applied to each query and key head before RoPE."""
    head_dim: int | None
    """The size of a head where config.json has none. None: hidden_size / num_attention_heads."""
    fixed: Mapping[str, tuple[tuple[Any, ...], str]] = field(default_factory=lambda: MappingProxyType({}))
    """Keys of config.json that change the function in this family alone: key → (values accepted, why no other is)."""


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "qwen2": Family(
            title="Qwen2.5",
            language="Qwen2ForCausalLM",
            scalar="Qwen2ForSequenceClassification",
            qkv_bias=True,
            qk_norm=False,
            head_dim=None,
        ),
        "qwen3": Family(
            title="Qwen3",
            language="Qwen3ForCausalLM",
            scalar="Qwen3ForSequenceClassification",
            qkv_bias=False,
            qk_norm=True,
            head_dim=128,
            fixed=MappingProxyType(
                {"attention_bias": ((False, None), "the published Qwen3 models have no bias in their attention")}
            ),
        ),
    }
)
"""By `model_type`, as in config.json."""
