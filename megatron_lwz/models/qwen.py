"""Qwen2.5 and Qwen3 (dense) as Megatron-Core's GPTModel: configuration, layer spec and provider.

Grouped-query attention, RMSNorm, SwiGLU, RoPE, tied or untied output layer. What distinguishes the families stands in
`config/families.py`.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from megatron_lwz.config import Architecture, Config
from megatron_lwz.config.sections import LoraSection
from megatron_lwz.distributed import groups, megatron_version, optional, platform
from megatron_lwz.errors import ConfigError
from megatron_lwz.kernels.layers import PLAIN, LayerOps, layer_ops
from megatron_lwz.models.attention import CausalAttention, PackedSelfAttention
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.models.lora import adapt, freeze
from megatron_lwz.models.norm import RMSNorm
from megatron_lwz.models.reward_model import RewardModel
from megatron_lwz.models.rotary import RotaryTable

_log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""`training.precision` → type of the parameters."""
_BACKENDS = {"transformer_engine": "transformer_engine", "flash": "flash_attn", "torch": None}
"""Attention back end → the package that it needs; the first that can run is `auto`'s choice."""


def padded_vocab_size(arch: Architecture, padding: int) -> int:
    """Returns the number of rows of embedding and output layer: the vocabulary rounded up to a multiple of `padding`.

    It is the same under any layout.
    """
    return -(-arch.vocab_size // padding) * padding


def attention_backend(config: Config) -> str:
    """Returns `transformer_engine`, `flash` or `torch`: the meaning of `model.attention` on this machine.

    Raises ConfigError for an explicit choice that cannot run here.
    """
    asked = config.model.attention
    if asked == "auto":
        return next(name for name in _BACKENDS if _unusable(name, config) is None)
    if (reason := _unusable(asked, config)) is not None:
        raise ConfigError("model.attention", asked, f"cannot run here ({reason}): choose auto or torch")
    return asked


def _unusable(backend: str, config: Config) -> str | None:
    """Returns why the attention back end cannot run here, in one line; None if it can."""
    package = _BACKENDS[backend]
    if package is None:
        return None
    if (reason := optional.unusable(package)) is not None:
        return f"{package}: {reason}"
    if backend == "transformer_engine" and config.adapter() is not None:
        return "its linear layers take no LoRA adapter"
    return None if config.training.precision == "bf16" else "it needs training.precision bf16"


def transformer_config(arch: Architecture, config: Config) -> TransformerConfig:
    """Returns Megatron's settings for this architecture, layout, precision and machine."""
    layout, dtype = config.parallel, DTYPES[config.training.precision]
    settings: dict[str, Any] = {
        "num_layers": arch.num_hidden_layers,
        "hidden_size": arch.hidden_size,
        "ffn_hidden_size": arch.intermediate_size,
        "num_attention_heads": arch.num_attention_heads,
        "num_query_groups": arch.num_key_value_heads,
        "kv_channels": arch.head_size,
        "normalization": "RMSNorm",
        "layernorm_epsilon": arch.rms_norm_eps,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        "add_qkv_bias": arch.family.qkv_bias,
        "qk_layernorm": arch.family.qk_norm,
        "softmax_scale": arch.attention_scale,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bf16": dtype == torch.bfloat16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "virtual_pipeline_model_parallel_size": layout.virtual_pipeline,
        "context_parallel_size": layout.context,
        "sequence_parallel": layout.sequence and layout.tensor > 1,
        "calculate_per_token_loss": True,  # losses are sums; the step's denominator divides once
        "variable_seq_lengths": True,  # packs differ in length …
        "moe_token_dispatcher_type": "alltoall",  # … which Megatron accepts only with this, even without experts
        # Frees outputs while they are sent. Safe in a CUDA stream's order, but gloo may still be reading them.
        "deallocate_pipeline_outputs": platform.has_gpu(),
        # With two stages, both neighbours in the interleaved schedule are the same rank.
        "overlap_p2p_comm": layout.virtual_pipeline is not None,
        "batch_p2p_comm": layout.virtual_pipeline is None,
        # Weights are always loaded or drawn afterwards (models/hf), independent of the layout.
        "init_method": _leave_as_is,
        "output_layer_init_method": _leave_as_is,
        "embedding_init_method": _leave_as_is,
    }
    return TransformerConfig(**settings, **_recompute(config.training.recompute), **_fusions(attention_backend(config)))


def layer_spec(
    settings: TransformerConfig,
    *,
    backend: str,
    ops: LayerOps | None = None,
    chunk: int | None = None,
    lora: LoraSection | None = None,
) -> TransformerBlockSubmodules:
    """Returns the spec of the layers of virtual chunk `chunk` on this pipeline stage, for an `attention_backend`.

    `ops` and `lora` apply to layers without Transformer Engine, which has its own operations and takes no adapters.
    """
    if backend == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TENorm

        norm = TENorm
        layer = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=settings.qk_layernorm)
    else:
        ops = ops or PLAIN
        norm, layer = ModuleSpec(RMSNorm, params={"ops": ops}), get_gpt_layer_local_spec(normalization="RMSNorm")
        parts = layer.submodules
        parts.input_layernorm = parts.pre_mlp_layernorm = norm
        parts.self_attention.module = PackedSelfAttention
        if settings.qk_layernorm:
            parts.self_attention.submodules.q_layernorm = parts.self_attention.submodules.k_layernorm = norm
        parts.self_attention.submodules.core_attention = partial(CausalAttention, flash=backend == "flash", ops=ops)
        megatron_version.set_activation(parts, ops.swiglu)
        if lora is not None:
            adapt(parts, lora, settings)
    layers = get_num_layers_to_build(settings, vp_stage=chunk)
    # With a bare layer spec Megatron would use its own final norm, which refuses sequence parallelism.
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=norm)


def build_policy(config: Config) -> list[PolicyModel]:
    """Returns this rank's model chunks (one, or one per virtual pipeline stage) with uninitialised weights.

    With LoRA all but the adapters is frozen.
    An architecture with a scalar head gives `RewardModel`s. They are loaded, saved and exported in the same way. Load
    the weights with `models.hf.load_policy`. Raises ConfigError for an attention back end that cannot run here.
    """
    arch, lora = config.architecture(), config.adapter()
    settings = transformer_config(arch, config)
    backend = attention_backend(config)
    ops = _layer_ops(config.kernels.layers, backend)
    if groups.is_rank_zero():
        used = [name for name, on in _fusions(backend).items() if on]
        _log.info(
            "attention: %s; layer ops: %s; Megatron's: %s",
            backend,
            ops.name if ops else backend,
            ", ".join(used) or "none",
        )
        for package, reason in optional.broken().items():
            _log.warning("%s is installed but cannot be used, the run goes on without it: %s", package, reason)
    virtual = config.parallel.virtual_pipeline
    chunks = range(virtual) if virtual else [None]
    scalar = arch.head == "scalar"
    model: type[Any] = RewardModel if scalar else PolicyModel
    built = [
        model(
            settings,
            arch,
            transformer_layer_spec=layer_spec(settings, backend=backend, ops=ops, chunk=chunk, lora=lora),
            vocab_size=padded_vocab_size(arch, config.model.vocab_padding),
            max_sequence_length=arch.context_length,
            pre_process=groups.is_first_stage(chunk),
            post_process=groups.is_last_stage(chunk),
            share_embeddings_and_output_weights=arch.tie_word_embeddings and not scalar,
            position_embedding_type="rope",
            rotary_base=arch.rope_theta,
            vp_stage=chunk,
        ).to(platform.device())
        for chunk in chunks
    ]
    for one in built:
        one.rotary_pos_emb = RotaryTable(arch, one.pg_collection.cp)
        if lora is not None:
            one.lora = lora
            freeze(one)
    return built


def _recompute(kind: str) -> dict[str, Any]:
    """Returns Megatron's recomputation settings.

    `selective` recomputes the feed-forward blocks, whose activations are the largest; our attention stores few.
    """
    if kind == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if kind == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}
    return {}


def _layer_ops(asked: str, backend: str) -> LayerOps | None:
    """Returns the layer operations that `kernels.layers` selects for an `attention_backend`. Raises ConfigError.

    Returns None under Transformer Engine.
    """
    if backend != "transformer_engine":
        return layer_ops(asked)
    if asked != "auto":
        raise ConfigError(
            "kernels.layers", asked, "Transformer Engine brings its own; set model.attention to torch or flash"
        )
    return None


def _fusions(backend: str) -> dict[str, bool]:
    """Returns Megatron's switches for fused kernels: used where they are installed, never required.

    Without dropout and bias there is nothing to fuse into the residual addition, so `bias_dropout_fusion` stays off.
    `gradient_accumulation_fusion` needs gradient buffers: training/gradient_fusion.py switches it on when they exist.
    """
    engine = backend == "transformer_engine"
    return {
        "bias_activation_fusion": engine,
        "use_te_activation_func": not engine,  # despite its name it selects the layer spec's function: ours
        "apply_rope_fusion": engine,
    }


def _leave_as_is(weight: torch.Tensor) -> torch.Tensor:
    return weight
