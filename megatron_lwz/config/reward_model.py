"""The writing reward model: how it learns from pairs, and how a run asks it for scores."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_lwz.config.base import ComponentSection, Section

Template = Literal["markers", "chat"]


class RewardModelSection(Section):
    """Training of a reward model on preference pairs (train_reward_model)."""

    pairs: tuple[str, ...] = Field(
        (), description="JSONL or Parquet files of pairs: tools/make_preference_pairs.py's, or human ones"
    )
    held_out: tuple[str, ...] = Field((), description="pairs used for evaluation only, in the same formats")
    epochs: float | None = Field(None, gt=0, description="passes over the pairs, in place of training.steps")
    margin: float = Field(
        0.0, ge=0, description="how far the chosen text must lead, times the pair's own margin (1 where it has none)"
    )
    center: float = Field(
        0.0, ge=0, description="coefficient of the squared mean score of a pair, which holds scores around 0; open"
    )
    template: Template = Field(
        "markers",
        description="what is read: markers = the policy's role markers and a closing token; chat = Qwen's chat markup",
    )
    thinking: bool = Field(False, description="whether the think segment is read too; open")


class WritingReward(ComponentSection):
    """The score of a reward model for the answer. Off until `hf` or `url` is given."""

    hf: str | None = Field(
        None, description="a reward model's Hugging Face folder: the run serves it on loopback and stops it at the end"
    )
    url: str | None = Field(None, description="a server that runs already: lwz serve-reward, or vLLM's")
    api: Literal["score", "pooling", "classify"] = Field(
        "score", description="route: score = lwz serve-reward; pooling, classify = vLLM's"
    )
    model: str = Field("", description="name that a vLLM server knows the model by")
    api_key_env: str = Field("LWZ_REWARD_TOKEN", description="environment variable that holds the server's token")
    template: Template = Field("markers", description="vLLM: the form that the model reads (lwz serve-reward knows it)")
    end: str = Field("<|im_end|>", description="vLLM: the token that closes a text under template markers")
    thinking: bool = Field(False, description="send the think segment too; the model must have been trained with it")
    transform: Literal["none", "sigmoid"] = Field(
        "none", description="none: the raw score, for normalisers that rescale; sigmoid: between 0 and 1"
    )
    timeout: float = Field(120.0, gt=0, description="seconds for one answer")
    retries: int = Field(3, ge=0, description="attempts per request after failures; then the group's scores are masked")
    backoff: float = Field(0.5, gt=0, description="seconds before the first retry; doubles")
    batch: int = Field(64, gt=0, description="texts per request")
    threads: int = Field(1, ge=0, description="CPU threads of the server that the run starts; 0 = all cores")
    tokens_per_batch: int = Field(32768, gt=0, description="tokens that the started server reads at once")

    @property
    def used(self) -> bool:
        """Whether the component is part of the run."""
        return self.hf is not None or self.url is not None
