"""The writing reward model: its training on preference pairs, and the scores that a run requests from it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_lwz.config.base import ComponentSection, Paths, Section, Url, UserPath, Variable

Template = Literal["markers", "chat"]


class RewardModelSection(Section):
    """Training of a reward model on preference pairs (train_reward_model)."""

    pairs: Paths = Field((), description="JSONL or Parquet files of pairs, from `lwz pairs` or human annotation")
    held_out: Paths = Field((), description="pairs used for evaluation only, in the same formats")
    epochs: float | None = Field(None, gt=0, description="passes over the pairs; replaces training.steps")
    margin: float = Field(
        0.0,
        ge=0,
        description="required lead of the chosen text's score, multiplied by the pair's own margin (1 if it has none)",
    )
    center: float = Field(
        0.0, ge=0, description="coefficient of the squared mean score of a pair, which keeps scores around 0; open"
    )
    template: Template = Field(
        "markers",
        description="input format: markers = the policy's role markers and a closing token; chat = Qwen's chat markup",
    )
    thinking: bool = Field(False, description="include the think segment in the input; open")


class WritingReward(ComponentSection):
    """The reward model's score of the answer. Off until `hf` or `url` is given."""

    hf: UserPath | None = Field(
        None, description="Hugging Face folder of a reward model: the run serves it on loopback and stops it at the end"
    )
    url: Url | None = Field(None, description="URL of a running server: lwz serve-reward, or vLLM")
    api: Literal["score", "pooling", "classify"] = Field(
        "score", description="API route: score = lwz serve-reward; pooling, classify = vLLM"
    )
    model: str = Field("", description="model name sent to a vLLM server")
    api_key_env: Variable = Field("LWZ_REWARD_TOKEN", description="environment variable with the server's token")
    template: Template = Field(
        "markers", description="vLLM: the model's input format (lwz serve-reward determines it itself)"
    )
    end: str = Field("<|im_end|>", description="vLLM: token at the end of a text with template: markers")
    thinking: bool = Field(False, description="send the think segment too; the model must have been trained with it")
    transform: Literal["none", "sigmoid"] = Field(
        "none", description="none: the raw score, for normalisers that rescale; sigmoid: mapped to between 0 and 1"
    )
    timeout: float = Field(120.0, gt=0, description="timeout of one request, in seconds")
    retries: int = Field(
        3, ge=0, description="maximum retries of a failed request; after that, the group's scores are masked"
    )
    backoff: float = Field(0.5, gt=0, description="seconds before the first retry; doubles with each further retry")
    batch: int = Field(64, gt=0, description="texts per request")
    threads: int = Field(1, ge=0, description="CPU threads of the server that the run starts; 0 = all cores")
    tokens_per_batch: int = Field(
        32768, gt=0, description="maximum tokens per forward pass of the server that the run starts"
    )

    @property
    def used(self) -> bool:
        """Whether the component is part of the run."""
        return self.hf is not None or self.url is not None
