"""The policy, how it is split over ranks, and which kernels run."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from megatron_lwz.config.base import Section, UserPath
from megatron_lwz.config.families import FAMILIES, Family

Head = Literal["language", "scalar"]
ModelType = Literal["qwen2", "qwen3"]

_NO_EFFECT = ("head_dim", "head", "initializer_range", "max_position_embeddings")
"""Fields that do not change what given weights compute (the head's size is compared with its default filled in)."""


class Yarn(Section):
    """RoPE for texts longer than those of the pretraining (YaRN, arXiv 2309.00071), with transformers' names and defaults."""

    factor: float = Field(ge=1, description="the context grows by this factor (the paper's s)")
    original_max_position_embeddings: int = Field(gt=0, description="longest sequence of the pretraining, tokens")
    beta_fast: float = Field(
        32.0,
        gt=0,
        description="pairs of dimensions that turn more often than this in the original context keep their speed",
    )
    beta_slow: float = Field(
        1.0, gt=0, description="pairs of dimensions that turn less often than this get 1 / factor of their speed"
    )
    attention_factor: float | None = Field(
        None, gt=0, description="factor on rotated queries and keys; null: 0.1 ln(factor) + 1 (section 3.4)"
    )

    @property
    def scale(self) -> float:
        """Factor on rotated queries and on rotated keys."""
        return self.attention_factor or 0.1 * math.log(self.factor) + 1.0


class Architecture(Section):
    """The architecture of a decoder (names as in Hugging Face's config.json)."""

    model_type: ModelType = Field("qwen2", description="family of the decoder: qwen2 (Qwen2.5) or qwen3 (Qwen3, dense)")
    num_hidden_layers: int = Field(gt=0, le=4096, description="decoder layers")
    hidden_size: int = Field(gt=0, le=2**20, description="width of a token's hidden state")
    intermediate_size: int = Field(gt=0, le=2**20, description="width inside the MLP (SwiGLU)")
    num_attention_heads: int = Field(gt=0, le=2**20, description="query heads")
    num_key_value_heads: int = Field(
        gt=0,
        le=2**20,
        description="key and value heads; each serves num_attention_heads / num_key_value_heads query heads",
    )
    vocab_size: int = Field(
        gt=0, le=2**24, description="true vocabulary; padding rows are added internally and masked everywhere"
    )
    max_position_embeddings: int = Field(32768, gt=0, description="longest sequence in tokens")
    rope_theta: float = Field(1_000_000.0, gt=0, description="base of the rotary position embedding")
    rope_scaling: Yarn | None = Field(None, description="YaRN; null: RoPE as it is")
    rms_norm_eps: float = Field(1e-6, gt=0, description="added to the mean square in RMSNorm")
    tie_word_embeddings: bool = Field(False, description="whether the output layer is the embedding")
    head_dim: int | None = Field(
        None, gt=0, description="size of a head; null: 128 for qwen3, hidden_size / num_attention_heads for qwen2"
    )
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of random initial weights")
    head: Head = Field(
        "language",
        description="language: next-token log-probs; scalar: one score per text, Hugging Face's …ForSequenceClassification",
    )

    @field_validator("rope_scaling")
    @classmethod
    def _angles_grow_slower(cls, given: Yarn | None, info: ValidationInfo) -> Yarn | None:
        """YaRN looks for the dimension whose pair turns so many times: without a base above 1 there is none."""
        if given is not None and info.data.get("rope_theta", math.inf) <= 1:
            raise ValueError(f"YaRN needs a rope_theta above 1, not {info.data['rope_theta']:g}")
        return given

    @property
    def family(self) -> Family:
        """What distinguishes this family of decoders from the others."""
        return FAMILIES[self.model_type]

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.family.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def context_length(self) -> int:
        """Longest sequence in tokens: `max_position_embeddings`, or what YaRN makes of the original one if that is more."""
        if (yarn := self.rope_scaling) is None:
            return self.max_position_embeddings
        return max(self.max_position_embeddings, int(yarn.factor * yarn.original_max_position_embeddings))

    @property
    def attention_scale(self) -> float | None:
        """Factor on the products of queries and keys; None: 1 / √head_size. YaRN's factor on both stands in it squared."""
        return None if self.rope_scaling is None else self.rope_scaling.scale**2 / math.sqrt(self.head_size)

    def difference(self, other: Architecture) -> tuple[str, Any, Any] | None:
        """Returns (name, own value, other's value) of the first number that changes what the same weights compute."""
        names = [name for name in type(self).model_fields if name not in _NO_EFFECT]
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in [*names, "head_size"]]
        return next((pair for pair in pairs if pair[1] != pair[2]), None)


class ModelSection(Section):
    """The policy. Give one of `hf`, `architecture` or `preset`; weights come from `hf`, `checkpoint.load` or a random init."""

    hf: UserPath | None = Field(None, description="Hugging Face folder: config.json, *.safetensors, tokenizer files")
    architecture: Architecture | None = Field(None, description="explicit architecture of the decoder")
    preset: str | None = Field(
        None, description="name of a published size: qwen2.5-0.5b … qwen2.5-72b, qwen3-0.6b … qwen3-32b"
    )
    tokenizer: UserPath | None = Field(None, description="folder with tokenizer.json; null: `hf`")
    vocab_padding: int = Field(
        128,
        gt=0,
        description="the vocabulary is padded to a multiple of this many rows; independent of parallel.tensor, so that checkpoints can be resharded",
    )
    attention: Literal["auto", "transformer_engine", "flash", "torch"] = Field(
        "auto",
        description="auto: Transformer Engine if there is a GPU and it can be imported, else flash-attn, else torch",
    )
    head: Head | None = Field(
        None, description="null: as in `hf` or `architecture`; train_reward_model always uses scalar"
    )


class ParallelSection(Section):
    """The parallel layout. The data-parallel size is what remains of the world size."""

    tensor: int = Field(1, gt=0, description="ranks that share each layer (tensor parallelism)")
    pipeline: int = Field(1, gt=0, description="stages that share the layers (pipeline parallelism)")
    context: int = Field(1, gt=0, description="ranks that share each sequence (context parallelism)")
    virtual_pipeline: int | None = Field(
        None, gt=1, description="model chunks per pipeline rank (interleaved schedule)"
    )
    sequence: bool = Field(True, description="sequence parallelism of norms and dropouts; only used with tensor > 1")
    distributed_optimizer: bool = Field(True, description="shard optimizer state over data-parallel ranks")
    overlap: bool = Field(False, description="overlap gradient reduction with the backward pass")
    timeout_minutes: float = Field(
        30.0, gt=0, description="timeout of collectives, in minutes; ranks never wait for rollouts inside a collective"
    )
    stall_minutes: float = Field(
        5.0,
        ge=0,
        description="when a rank has not moved for so many minutes (at most half of timeout_minutes), a warning says where every rank is; 0: never",
    )


OLD_BACKEND_NAMES = {"chunked": "torch"}
"""Earlier names of `kernels.backend`, which configs and saved runs may still contain → today's names."""


class KernelsSection(Section):
    """The implementation of each op."""

    backend: Literal["auto", "reference", "torch", "cpp", "triton", "cuda"] = Field(
        "auto",
        description="auto: triton on a GPU, cpp on a CPU, torch (plain torch) if these cannot run; an explicit choice that cannot run is an error",
    )
    layers: Literal["auto", "torch", "cpp", "triton"] = Field(
        "auto",
        description="RMSNorm, rotary embedding and SwiGLU of layers without Transformer Engine; auto: triton on a GPU, else cpp where it is built",
    )
    workspace_mib: int = Field(
        256, gt=0, description="maximum memory for the logits that the log-prob op holds at a time, MiB"
    )
    cache_mib: int = Field(
        256,
        ge=0,
        description="maximum memory for logits kept for the backward pass of losses over whole sequences, MiB",
    )
    cross_check_interval: int = Field(
        0, ge=0, description="steps between comparisons of a few rows with the reference implementation; 0 = never"
    )

    @field_validator("backend", mode="before")
    @classmethod
    def _read_old_name(cls, given: Any) -> Any:
        return OLD_BACKEND_NAMES.get(given, given) if isinstance(given, str) else given
