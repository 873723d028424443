"""The writing reward model: its training on preference pairs, and the scores that a run requests from it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_lwz.config.base import Paths, Section, ServedSection, Url, UserPath, Variable

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


class WritingReward(ServedSection):
    """The reward model's score of the answer. Off until `hf` or `url` is given."""

    url: Url | None = Field(None, description="URL of a running server: lwz serve-reward, or vLLM")
    api: Literal["score", "pooling", "classify"] = Field(
        "score", description="API route: score = lwz serve-reward; pooling, classify = vLLM"
    )
    model: str = Field("", description="model name sent to a vLLM server")
    template: Template = Field(
        "markers", description="vLLM: the model's input format (lwz serve-reward determines it itself)"
    )
    end: str = Field("<|im_end|>", description="vLLM: token at the end of a text with template: markers")
    thinking: bool = Field(False, description="send the think segment too; the model must have been trained with it")
    transform: Literal["none", "sigmoid"] = Field(
        "none", description="none: the raw score, for normalisers that rescale; sigmoid: mapped to between 0 and 1"
    )
    batch: int = Field(64, gt=0, description="texts per request")


class ContinuationReward(ServedSection):
    """How much the text makes the row's `continuation`, a real text, more likely under a frozen model (VR-CLI, 2503.22828).

    Off until `hf` or `url` is given.
    """

    hf: UserPath | None = Field(
        None,
        description="Hugging Face folder of the frozen model: the run serves it on loopback and stops it at the end; with api: completions, the folder of its tokenizer",
    )
    url: Url | None = Field(None, description="URL of a running server: lwz serve-reward --likelihood, or vLLM")
    api: Literal["likelihood", "completions"] = Field(
        "likelihood",
        description="API: likelihood = lwz serve-reward --likelihood; completions = the prompt log-probs of a vLLM server",
    )
    model: str = Field("", description="model name sent to a vLLM server")
    api_key_env: Variable = Field("LWZ_LIKELIHOOD_TOKEN", description="environment variable with the server's token")
    reads: Literal["thinking", "answer"] = Field(
        "thinking",
        description="segment of the rollout that stands before the continuation: thinking, a plan (as in VR-CLI), or answer, where the request asks for a plan",
    )
    score: Literal["levels", "percent", "nats"] = Field(
        "levels",
        description="levels: 0, 0.5, 0.9 or 1 from 0.05, 1 and 2 % less perplexity on (VR-CLI); percent: 100 · (1 − perplexity with / perplexity without), not below −100; nats: gain of the mean log-prob per token",
    )
    longest: int = Field(
        1024, gt=0, description="tokens of the continuation that count, from its start; the rest is not read; open"
    )
    template: Literal["text", "chat"] = Field(
        "text",
        description="input format, of the server that the run starts or for a vLLM server: text = request, then continuation, for base models; chat = Qwen's chat markup, for instruct models",
    )
