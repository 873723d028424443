"""The diversity reward, an optional component: how far an answer is from its siblings (DARLING, 2509.02534)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_lwz.config.sections import DiversityReward
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.data.text.near_duplicates import paragraphs
from megatron_lwz.data.text.sameness import similarities
from megatron_lwz.errors import ConfigError
from megatron_lwz.http.session import Closing
from megatron_lwz.rewards.embedder import Embedder
from megatron_lwz.types import ComponentScore, Prompt, Rollout

_LONGEST, _SHORTEST = 300, 20
"""Words + CJK characters of a paragraph before it is split, and of the shortest part: what a small encoder reads whole."""


class DiversityComponent(Closing):
    """The mean distance of an answer to the other answers of the group, in [0, 1].

    A rollout without an answer gets 0, and no other is measured against it. With fewer than two answers, or when the
    embeddings fail, the group is masked. Details: `nearest`, the similarity to the most similar sibling, 0 to 1.
    `metrics()` counts requests and masked groups.
    """

    name = "diversity"

    def __init__(self, section: DiversityReward, key: str | None = None) -> None:
        """Takes the `key` of the embeddings' server, see Embedder. Raises ConfigError or EngineError."""
        self._section = section
        self._embedder = None
        self._masked = 0
        if section.distance == "embedding":
            self._embedder = Embedder(self.name, section, key)
        elif given := {name: value for name in ("url", "hf") if (value := getattr(section, name)) is not None}:
            raise ConfigError("reward.diversity", given, "distance: ngram embeds nothing: write distance: embedding")
        self._version = f"{self.name}/{self._embedder.model if self._embedder else 'ngram'}"

    async def close(self) -> None:
        """Closes the connections."""
        if self._embedder is not None:
            await self._embedder.close()

    def metrics(self) -> dict[str, float]:
        """Returns the counts since the start of the process."""
        counted = self._embedder.counters if self._embedder else {}
        return {f"{self.name}/{name}": float(count) for name, count in counted.items()} | {
            f"{self.name}/masked_groups": float(self._masked)
        }

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        """Returns one score per rollout; all are invalid if there is nothing to compare."""
        answers = [parse_rollout(prompt, rollout).answer or "" for rollout in rollouts]
        written = [place for place, answer in enumerate(answers) if answer.strip()]
        similar = await self._similarities([answers[place] for place in written]) if len(written) > 1 else None
        if similar is None:
            self._masked += 1
            return [ComponentScore(0.0, valid=False, version=self._version) for _ in rollouts]
        np.fill_diagonal(similar, 0.0)
        nearest = similar.max(1)
        if self._section.same is not None:
            similar = classes(similar, self._section.same)
        scores = [ComponentScore(0.0, version=self._version) for _ in rollouts]
        for place, near, shared in zip(written, nearest.tolist(), similar.sum(1).tolist(), strict=True):
            value = 1 - shared / (len(written) - 1)
            scores[place] = ComponentScore(value, details={"nearest": near}, version=self._version)
        return scores

    async def _similarities(self, answers: Sequence[str]) -> NDArray[np.float64] | None:
        """Returns the similarities [N, N] in [0, 1], None after a failure."""
        if self._embedder is None:
            return await asyncio.to_thread(similarities, answers)  # not in the loop that streams rollouts
        parts = [self._parts(answer) for answer in answers]
        vectors = await self._embedder.embed([part for found in parts for part in found])
        if vectors is None:
            return None
        means = torch.stack([torch.stack([vectors[part] for part in found]).mean(0) for found in parts])
        rows = torch.nn.functional.normalize(means.double(), dim=-1)
        return (rows @ rows.T).clamp(0, 1).numpy()

    def _parts(self, answer: str) -> list[str]:
        found = [part.strip() for part in paragraphs(answer, longest=_LONGEST, shortest=_SHORTEST)]
        count = min(len(found), self._section.most_paragraphs)
        return [found[place * len(found) // count] for place in range(count)]


def classes(similar: NDArray[np.float64], same: float) -> NDArray[np.float64]:
    """Returns 1 where two texts [N, N] are of one class, 0 elsewhere and on the diagonal.

    Texts whose similarity is at least `same` are of one class, and so are all that a chain of such pairs connects.
    """
    joined = (similar >= same) | np.eye(len(similar), dtype=bool)
    while (further := joined @ joined).sum() > joined.sum():
        joined = further
    return (joined & ~np.eye(len(similar), dtype=bool)).astype(np.float64)
