"""The writing reward (LongWriter-Zero, section 3.1): a reward model's score of the answer, requested over HTTP.

A slow, wrong or silent server costs scores but does not stop the run: missing scores are masked and counted.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from megatron_lwz.config.sections import WritingReward
from megatron_lwz.data.preferences.rendering import Rendering, Reply
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.errors import ConfigError
from megatron_lwz.rewards.per_rollout import PerRollout
from megatron_lwz.rewards.score_client import ScoreClient, number
from megatron_lwz.types import ComponentScore, Prompt, Rollout


class WritingComponent(ScoreClient, PerRollout):
    """Requests the scores of a group's answers from lwz serve-reward or vLLM's pooling server.

    A rollout without an answer is not sent. Its score is invalid, like that of a text which the server rejects or to
    which it gives a number that cannot be a score.
    Details: `raw` (the model's own number). `metrics()` counts requests and masked scores, by reason.
    """

    name = "writing"

    def __init__(self, section: WritingReward, token: str | None = None) -> None:
        """Takes `token`; None reads it from the variable `reward.writing.api_key_env`. Raises ConfigError."""
        super().__init__(section, section.api, "lwz serve-reward or vLLM", token)
        if section.api != "score" and not section.model:
            raise ConfigError("reward.writing.model", section.model, "name the model that the vLLM server serves")
        self._section = section
        self._rendering = Rendering(section.template, section.thinking, section.end)

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        """Returns one score per rollout; it is invalid without an answer or a verdict."""
        replies = [self._reply(prompt, rollout) for rollout in rollouts]
        asked = [place for place, reply in enumerate(replies) if reply.answer.strip()]
        self.mask("no answer", len(replies) - len(asked))
        scores = [ComponentScore(0.0, valid=False, version=self.name)] * len(rollouts)
        size = self._section.batch
        parts = [asked[start : start + size] for start in range(0, len(asked), size)]
        answers = await asyncio.gather(*(self._ask(prompt.text, [replies[place] for place in part]) for part in parts))
        for part, answer in zip(parts, answers, strict=True):
            for place, raw in zip(part, answer.scores, strict=True):
                if raw is not None:
                    scores[place] = ComponentScore(self._shape(raw), details={"raw": raw}, version=answer.version)
        return scores

    def _reply(self, prompt: Prompt, rollout: Rollout) -> Reply:
        parsed = parse_rollout(prompt, rollout)
        return Reply(parsed.answer or "", (parsed.think or "") if self._section.thinking else "")

    async def _ask(self, prompt: str, replies: Sequence[Reply]) -> _Answer:
        """Returns the server's answer; all None if there is none."""
        answer = await self.ask(self._body(prompt, replies), len(replies), partial(self._answer, count=len(replies)))
        if answer is None:
            return _Answer([None] * len(replies), self.name)
        self.counters["scored"] += len(replies) - answer.scores.count(None)
        self.mask("refused text", answer.scores.count(None))
        return answer

    def _body(self, prompt: str, replies: Sequence[Reply]) -> dict[str, Any]:
        if self._section.api == "score":
            items = [{"prompt": prompt, "answer": reply.answer, "thinking": reply.thinking} for reply in replies]
            return {"items": items}
        texts = [self._rendering(prompt, reply) for reply in replies]
        body: dict[str, Any] = {"model": self._section.model, "input": texts, "use_activation": False}
        return body | {"task": "classify"} if self._section.api == "pooling" else body

    def _answer(self, answer: Any, count: int) -> _Answer:
        """Returns the scores in order. Raises one of OTHER_SHAPE for an answer of another shape."""
        if self._section.api == "score":
            version = f"{answer['model']}@{answer['version']}"
            scores = [None if score is None else number(score) for score in answer["scores"]]
        else:
            version = str(answer.get("model") or self._section.model)
            rows = sorted(answer["data"], key=lambda row: row["index"])
            scores = [_only(row["data" if self._section.api == "pooling" else "probs"]) for row in rows]
        if len(scores) != count:
            raise ValueError(f"{len(scores)} scores for {count} texts")
        return _Answer(scores, f"{self.name}/{version[:200]}")

    def _shape(self, raw: float) -> float:
        return raw if self._section.transform == "none" else 0.5 + 0.5 * math.tanh(raw / 2)


@dataclass(frozen=True)
class _Answer:
    scores: list[float | None]
    version: str


def _only(values: Any) -> float | None:
    """Returns the one number of a text's output, as `_number` does. Raises ValueError for a model with several."""
    (value,) = values if isinstance(values, list) else [values]
    return number(value)
