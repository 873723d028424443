"""Unit vectors of texts, from a server with OpenAI's `/v1/embeddings` or from a small encoder on the CPU."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

import torch

from megatron_lwz.config.embedding import EmbeddingSection
from megatron_lwz.distributed import environment
from megatron_lwz.errors import ConfigError
from megatron_lwz.http.completions import CompletionFailure
from megatron_lwz.http.embeddings import EmbeddingClient
from megatron_lwz.http.retry import Failure, RequestFailure, RetryBudget
from megatron_lwz.http.session import Closing

log = logging.getLogger(__name__)


class Embedder(Closing):
    """Embeds the texts of one component. `counters` counts its requests, retries and failures by class."""

    def __init__(self, name: str, section: EmbeddingSection, key: str | None = None) -> None:
        """`name` is the component's. Takes `key`; None reads it from the variable `api_key_env`.

        Raises ConfigError or EngineError.
        """
        self._name, self._section = name, section
        self.counters: Counter[str] = Counter()
        setting = f"reward.{name}"
        if (section.url is None) == (section.hf is None):
            raise ConfigError(setting, {"url": section.url, "hf": section.hf}, "give url or hf, not both")
        self._client = None
        if section.url is not None:
            if not section.model:
                raise ConfigError(f"{setting}.model", section.model, "name the model that the server embeds with")
            key = key if key is not None else environment.get(section.api_key_env)
            self._client = EmbeddingClient(
                section.url, key, model=section.model, timeout=section.timeout, key_name=section.api_key_env
            )
            self.model = section.model
        else:
            from megatron_lwz.models.encoder import SentenceEncoder  # transformers takes seconds to import

            self._encode = SentenceEncoder(str(section.hf), key=f"{setting}.hf")
            self.model = "local"
        self._slots = asyncio.Semaphore(section.concurrency if self._client else 1)

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.close()

    async def embed(self, texts: Sequence[str]) -> dict[str, torch.Tensor] | None:
        """Returns text → unit vector [D]. None after a failure, which cancels the requests under way."""
        different, size = list(dict.fromkeys(texts)), self._section.batch
        parts = [different[start : start + size] for start in range(0, len(different), size)]
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
                log.warning("reward %s, group masked: %s", self._name, failure)
            self.counters[f"failed/{failure.kind.value}"] += 1
            return None
        return dict(zip(different, (row for rows in found for row in rows), strict=True))

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
