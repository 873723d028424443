"""The two ways to ask a server how likely a continuation is: our own route, and the prompt log-probs of a vLLM server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_lwz.config.sections import ContinuationReward
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import ConfigError
from megatron_lwz.rewards.continued_text import context
from megatron_lwz.rewards.score_client import number

KEY = "reward.continuation"


@dataclass(frozen=True)
class Likelihoods:
    """A server's answer."""

    values: list[float | None]
    """Mean log-prob of the continuation's tokens after each text, in nats per token; None where there is none."""
    model: str


Question = tuple[dict[str, Any], Callable[[Any], Likelihoods]]
"""The body of a request, and what reads the decoded answer to it, which raises one of OTHER_SHAPE for another shape."""


class LikelihoodRoute(ABC):
    """How a server is asked."""

    path: str
    server: str
    """What runs at the address."""

    @abstractmethod
    def question(self, request: str, continuation: str, texts: Sequence[str]) -> Question:
        """Returns the question for the likelihood of `continuation` after each of the texts written for `request`."""


def likelihood_route(section: ContinuationReward) -> LikelihoodRoute:
    """Returns the route of `reward.continuation.api`. Raises LwzError for settings that do not fit it."""
    return _PromptLogprobs(section) if section.api == "completions" else _Own(section)


class _Own(LikelihoodRoute):
    """`lwz serve-reward --likelihood`, which renders and tokenises the texts itself."""

    path, server = "likelihood", "lwz serve-reward --likelihood"

    def __init__(self, section: ContinuationReward) -> None:
        self._longest = section.longest

    def question(self, request: str, continuation: str, texts: Sequence[str]) -> Question:
        items = [{"prompt": request, "continuation": continuation, "written": text} for text in texts]
        return {"items": items, "longest": self._longest}, partial(_read_own, count=len(texts))


class _PromptLogprobs(LikelihoodRoute):
    """vLLM's `/v1/completions` with `prompt_logprobs`. The texts are rendered and tokenised here, by the model's tokenizer."""

    path, server = "v1/completions", "vLLM, without /v1"

    def __init__(self, section: ContinuationReward) -> None:
        if not section.model:
            raise ConfigError(f"{KEY}.model", section.model, "name the model that the vLLM server serves")
        if section.hf is None:
            raise ConfigError(
                f"{KEY}.hf", section.hf, "name the folder of the model's tokenizer.json: texts are encoded here"
            )
        self._section = section
        self._encode = Tokenizer(Path(section.hf)).encode

    def question(self, request: str, continuation: str, texts: Sequence[str]) -> Question:
        section = self._section
        after = self._encode(continuation)[: section.longest]
        prompts = [[*self._encode(context(section.template, request, text)), *after] for text in texts]
        body = {"model": section.model, "prompt": prompts, "max_tokens": 1, "prompt_logprobs": 0}
        return body, partial(_read_prompt_logprobs, count=len(texts), tokens=after, model=section.model)


def _read_own(answer: Any, count: int) -> Likelihoods:
    values = [None if score is None else number(score) for score in answer["scores"]]
    if len(values) != count:
        raise ValueError(f"{len(values)} scores for {count} texts")
    return Likelihoods(values, f"{answer['model']}@{answer['version']}")


def _read_prompt_logprobs(answer: Any, count: int, tokens: Sequence[int], model: str) -> Likelihoods:
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    if len(choices) != count:
        raise ValueError(f"{len(choices)} answers for {count} texts")
    values = [_mean(tokens, choice["prompt_logprobs"][-len(tokens) :]) for choice in choices]
    return Likelihoods(values, str(answer.get("model") or model))


def _mean(tokens: Sequence[int], logprobs: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns the mean log-prob of tokens in vLLM's form: by token id, with that of the token among them."""
    if len(tokens) != len(logprobs):
        raise ValueError(f"{len(logprobs)} log-probs for {len(tokens)} tokens")
    values = [number(known[str(token)]["logprob"]) for token, known in zip(tokens, logprobs, strict=True)]
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if len(kept) == len(values) else None
