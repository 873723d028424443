"""The overlap reward, an optional component: paragraphs that repeat an earlier one's meaning, by sentence embeddings.

N-grams do not detect a paragraph that repeats another in different words. The paper's penalty is for such a semantic
overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_lwz.config.sections import OverlapReward
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.data.text.near_duplicates import UNIT, paragraphs
from megatron_lwz.http.session import Closing
from megatron_lwz.rewards.embedder import Embedder
from megatron_lwz.rewards.per_rollout import PerRollout
from megatron_lwz.types import ComponentScore, Prompt, Rollout


class OverlapComponent(Closing, PerRollout):
    """1 − the share of an answer's paragraphs whose cosine similarity to an earlier one reaches the threshold.

    A text with fewer than two paragraphs to compare gets 1, one without an answer 0. If the server fails, the component
    is masked for the group. Details: `overlap`, the share. `metrics()` counts requests and masked groups.
    """

    name = "overlap"

    def __init__(self, section: OverlapReward, key: str | None = None) -> None:
        """Takes `key`, see Embedder. Raises ConfigError or EngineError."""
        self._section = section
        self._embedder = Embedder(self.name, section, key)
        self._version = f"{self.name}/{self._embedder.model}"

    async def close(self) -> None:
        """Closes the connections."""
        await self._embedder.close()

    def metrics(self) -> dict[str, float]:
        """Returns the counts since the start of the process."""
        return {f"overlap/{name}": float(count) for name, count in self._embedder.counters.items()}

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
        self._embedder.counters["masked_groups"] += 1
        return [ComponentScore(0.0, valid=False, version=self._version) for _ in scores]

    async def _score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        answers = [parse_rollout(prompt, rollout).answer or "" for rollout in rollouts]
        texts = [self._paragraphs(answer) for answer in answers]
        vectors = await self._embedder.embed([text for found in texts if len(found) > 1 for text in found])
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


def repeated_share(vectors: torch.Tensor, threshold: float) -> float:
    """Returns the share of rows [N, D] (unit length) whose cosine with an earlier row is at least `threshold`.

    It is 0 for fewer than two rows.
    """
    if len(vectors) < 2:
        return 0.0
    similarities = vectors @ vectors.T
    later = torch.ones_like(similarities, dtype=torch.bool).triu()
    return (similarities.masked_fill(later, -2.0).amax(1) >= threshold).float().mean().item()
