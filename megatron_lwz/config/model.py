"""The policy, how it is split over ranks, and which kernels run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from megatron_lwz.config.base import Section, UserPath

Head = Literal["language", "scalar"]

_NO_EFFECT = ("head_dim", "head", "initializer_range", "max_position_embeddings")
"""Fields that do not change what given weights compute (the head's size is compared with its default filled in)."""


class Architecture(Section):
    """The architecture of a Qwen2.5 decoder (names as in Hugging Face's config.json)."""

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
    rms_norm_eps: float = Field(1e-6, gt=0, description="added to the mean square in RMSNorm")
    tie_word_embeddings: bool = Field(False, description="whether the output layer is the embedding")
    head_dim: int | None = Field(None, gt=0, description="null: hidden_size / num_attention_heads")
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of random initial weights")
    head: Head = Field(
        "language",
        description="language: next-token log-probs; scalar: one score per text, Hugging Face's Qwen2ForSequenceClassification",
    )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def difference(self, other: Architecture) -> tuple[str, Any, Any] | None:
        """Returns (name, own value, other's value) of the first number that changes what the same weights compute."""
        names = [name for name in type(self).model_fields if name not in _NO_EFFECT]
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in [*names, "head_size"]]
        return next((pair for pair in pairs if pair[1] != pair[2]), None)


class ModelSection(Section):
    """The policy. Give one of `hf`, `architecture` or `preset`; weights come from `hf`, `checkpoint.load` or a random init."""

    hf: UserPath | None = Field(None, description="Hugging Face folder: config.json, *.safetensors, tokenizer files")
    architecture: Architecture | None = Field(None, description="explicit architecture of the decoder")
    preset: str | None = Field(None, description="name of a Qwen2.5 size: qwen2.5-0.5b … qwen2.5-72b")
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
    layers: Literal["auto", "torch", "triton"] = Field(
        "auto",
        description="RMSNorm, rotary embedding and SwiGLU of layers without Transformer Engine; auto: triton on a GPU, else torch",
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
