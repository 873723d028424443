"""The overlap reward, an optional component: paragraphs that repeat an earlier one's meaning, by sentence embeddings.

N-grams do not detect a paragraph that repeats another in different words. The paper's penalty is for such a semantic
overlap.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

import torch

from megatron_lwz.config.sections import OverlapReward
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.data.text.near_duplicates import UNIT, paragraphs
from megatron_lwz.distributed import environment
from megatron_lwz.errors import ConfigError
from megatron_lwz.http.completions import CompletionFailure
from megatron_lwz.http.embeddings import EmbeddingClient
from megatron_lwz.http.retry import Failure, RequestFailure, RetryBudget
from megatron_lwz.http.session import Closing
from megatron_lwz.rewards.per_rollout import PerRollout
from megatron_lwz.types import ComponentScore, Prompt, Rollout

log = logging.getLogger(__name__)


class OverlapComponent(Closing, PerRollout):
    """1 − the share of an answer's paragraphs whose cosine similarity to an earlier one reaches the threshold.

    A text with fewer than two paragraphs to compare gets 1, one without an answer 0. If the server fails, the component
    is masked for the group. Details: `overlap`, the share. `metrics()` counts requests and masked groups.
    """

    name = "overlap"

    def __init__(self, section: OverlapReward, key: str | None = None) -> None:
        """Takes `key`; None reads it from the variable `reward.overlap.api_key_env`.

        Raises ConfigError or EngineError.
        """
        self._section = section
        self.counters: Counter[str] = Counter()
        if (section.url is None) == (section.hf is None):
            raise ConfigError("reward.overlap", {"url": section.url, "hf": section.hf}, "give url or hf, not both")
        self._client = None
        if section.url is not None:
            if not section.model:
                raise ConfigError("reward.overlap.model", section.model, "name the model that the server embeds with")
            key = key if key is not None else environment.get(section.api_key_env)
            self._client = EmbeddingClient(
                section.url, key, model=section.model, timeout=section.timeout, key_name=section.api_key_env
            )
            self._version = f"{self.name}/{section.model}"
        else:
            from megatron_lwz.models.encoder import SentenceEncoder  # transformers takes seconds to import

            self._encode = SentenceEncoder(str(section.hf), key="reward.overlap.hf")
            self._version = f"{self.name}/local"
        self._slots = asyncio.Semaphore(section.concurrency if self._client else 1)

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.close()

    def metrics(self) -> dict[str, float]:
        """Returns the counts since the start of the process."""
        return {f"overlap/{name}": float(count) for name, count in self.counters.items()}

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        """Returns one score per rollout in [0, 1]; all are invalid if the server fails."""
        return self.settle(await self._score(prompt, rollouts))

    async def score_one(self, prompt: Prompt, rollout: Rollout) -> ComponentScore:
        """Returns the rollout's score; it is invalid if the server fails."""
        (score,) = await self._score(prompt, [rollout])
        return score

    def settle(self, scores: Sequence[ComponentScore]) -> list[ComponentScore]:
        """Returns the scores; all become invalid if one is."""
        if all(score.valid for score in scores):
            return list(scores)
        self.counters["masked_groups"] += 1
        return [ComponentScore(0.0, valid=False, version=self._version) for _ in scores]

    async def _score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        answers = [parse_rollout(prompt, rollout).answer or "" for rollout in rollouts]
        texts = [self._paragraphs(answer) for answer in answers]
        vectors = await self._embed(list(dict.fromkeys(text for found in texts if len(found) > 1 for text in found)))
        if vectors is None:
            return [ComponentScore(0.0, valid=False, version=self._version) for _ in rollouts]
        scores = []
        for answer, found in zip(answers, texts, strict=True):
            rows = torch.stack([vectors[text] for text in found]) if len(found) > 1 else torch.zeros(0, 1)
            share = repeated_share(rows, self._section.threshold)
            value = 1 - share if answer.strip() else 0.0
            scores.append(ComponentScore(value, details={"overlap": share}, version=self._version))
        return scores

    def _paragraphs(self, answer: str) -> list[str]:
        section = self._section
        found = paragraphs(answer, longest=section.longest_paragraph, shortest=section.minimum_units)
        long_enough = (text.strip() for text in found if len(UNIT.findall(text)) >= section.minimum_units)
        return [text for _, text in zip(range(section.most_paragraphs), long_enough, strict=False)]

    async def _embed(self, texts: list[str]) -> dict[str, torch.Tensor] | None:
        """Returns text → unit vector. None after a failure, which cancels the requests under way."""
        size = self._section.batch
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        asking = [asyncio.ensure_future(self._ask(part)) for part in parts]
        try:
            found = await asyncio.gather(*asking)
            if len({rows.shape[1] for rows in found}) > 1:
                raise RequestFailure(str(self._section.url), "answered vectors of several lengths", Failure.CONTRACT)
        except RequestFailure as failure:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            if not self.counters[f"failed/{failure.kind.value}"]:  # only the first of each kind is logged
                log.warning("reward overlap, group masked: %s", failure)
            self.counters[f"failed/{failure.kind.value}"] += 1
            return None
        return dict(zip(texts, (row for rows in found for row in rows), strict=True))

    async def _ask(self, texts: Sequence[str]) -> torch.Tensor:
        """Returns [N, D] unit vectors. Raises RequestFailure after as many attempts as the section allows."""
        section = self._section
        if self._client is None:
            async with self._slots:  # one forward pass at a time, and not in the loop that streams rollouts
                return await asyncio.to_thread(self._encode, texts)
        budget = RetryBudget(section.retries, base_seconds=section.backoff, max_seconds=60 * section.backoff)
        while True:
            async with self._slots:
                self.counters["requests"] += 1
                try:
                    rows = torch.tensor(await self._client.embed(texts), dtype=torch.float32)
                    return torch.nn.functional.normalize(rows, dim=-1)
                except RequestFailure as failure:
                    wait = budget.spend(failure)
                    if isinstance(failure, CompletionFailure):
                        wait = max(wait, failure.retry_after)
            self.counters["retried"] += 1
            await asyncio.sleep(wait)


def repeated_share(vectors: torch.Tensor, threshold: float) -> float:
    """Returns the share of rows [N, D] (unit length) whose cosine with an earlier row is at least `threshold`.

    It is 0 for fewer than two rows.
    """
    if len(vectors) < 2:
        return 0.0
    similarities = vectors @ vectors.T
    later = torch.ones_like(similarities, dtype=torch.bool).triu()
    return (similarities.masked_fill(later, -2.0).amax(1) >= threshold).float().mean().item()
