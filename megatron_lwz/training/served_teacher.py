"""A teacher on a server with vLLM's routes: its log-probs of the policy's own tokens come by HTTP, as prompt log-probs.

Rank 0 asks and sends the answers to all ranks, so any layout works, and no rank holds the teacher's weights.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import aiohttp
import torch
from torch import Tensor

from megatron_lwz.config import Config
from megatron_lwz.config.sections import TeacherServer
from megatron_lwz.decoding import OTHER_SHAPE
from megatron_lwz.distributed import environment, exchange, heartbeat
from megatron_lwz.errors import ConfigError
from megatron_lwz.http.json_session import JsonSession
from megatron_lwz.http.retry import Failure, RequestFailure, RetryBudget
from megatron_lwz.types import MicroBatch, SequenceBatch
from megatron_lwz.units import MIB

KEY = "grpo.teacher_server"
_BYTES_PER_TOKEN = 512
"""Most bytes of an answer for each token of a text: its id, log-prob, rank and characters in JSON."""
_LONGEST_WAIT = 60.0
_CONNECT_SECONDS = 10.0


class ServedTeacher:
    """Asks for the log-probs of whole rollouts, `max_requests` at a time. All ranks make the same calls."""

    def __init__(self, section: TeacherServer) -> None:
        self._section = section
        self._key = environment.get(section.api_key_env)

    def check(self) -> None:
        """Asks for a text of two tokens. Collective. Raises EngineError, on every rank alike."""
        exchange.from_rank_zero(lambda: len(asyncio.run(self._ask_all([[0, 0]], [1]))))

    def logprobs(self, batch: SequenceBatch) -> Tensor:
        """Returns the log-prob of every token of a batch's responses, [sum of lengths] fp32 on the CPU; 0 for prompts.

        Collective. Raises EngineError, on every rank alike, when the server still fails after the retries.
        """
        found = torch.zeros(len(batch.tokens))

        def ask() -> None:
            bounds, prompts = batch.offsets.tolist(), batch.prompt_lengths.tolist()
            texts = [batch.tokens[a:b].tolist() for a, b in pairwise(bounds)]
            answers = asyncio.run(self._ask_all(texts, prompts))
            for begin, prompt, values in zip(bounds[:-1], prompts, answers, strict=True):
                found[begin + prompt : begin + prompt + len(values)] = torch.tensor(values)

        with heartbeat.waiting("the teacher's server"):
            exchange.from_rank_zero(ask)
            return exchange.broadcast_tensors({"logprobs": found})["logprobs"]

    async def _ask_all(self, texts: Sequence[Sequence[int]], prompts: Sequence[int]) -> list[list[float]]:
        limit = asyncio.Semaphore(self._section.max_requests)
        async with _Client(self._section, self._key) as client:

            async def one(text: Sequence[int], prompt: int) -> list[float]:
                async with limit:
                    return await client.logprobs(text, prompt)

            return await asyncio.gather(*(one(*pair) for pair in zip(texts, prompts, strict=True)))


class _Client(JsonSession):
    """Connections for the texts of one batch."""

    def __init__(self, section: TeacherServer, key: str | None) -> None:
        super().__init__(key, aiohttp.ClientTimeout(total=section.timeout, sock_connect=_CONNECT_SECONDS))
        self._section = section
        url = str(section.url).rstrip("/")
        self._address = f"{url}/completions" if url.endswith("/v1") else f"{url}/v1/completions"

    async def logprobs(self, text: Sequence[int], prompt: int) -> list[float]:
        """Returns the log-probs of a text's tokens from `prompt` on. Raises RequestFailure after the last retry."""
        section = self._section
        budget = RetryBudget(section.retries, base_seconds=section.backoff, max_seconds=_LONGEST_WAIT)
        body = {"model": section.model, "prompt": list(text), "max_tokens": 1, "prompt_logprobs": 0}
        most = MIB + _BYTES_PER_TOKEN * len(text)
        while True:
            try:
                answer = await self.post_json(
                    self._address, body, most=most, within=f"{section.timeout:g} s ({KEY}.timeout)"
                )
                return self._read(answer, text, prompt)
            except RequestFailure as failure:
                await asyncio.sleep(budget.spend(failure))

    def _read(self, answer: Any, text: Sequence[int], prompt: int) -> list[float]:
        try:
            known = answer["choices"][0]["prompt_logprobs"]
            if len(known) != len(text):
                raise ValueError(f"{len(known)} log-probs for {len(text)} tokens")
            values = [float(known[place][str(text[place])]["logprob"]) for place in range(prompt, len(text))]
        except OTHER_SHAPE as error:
            advice = f"gave no prompt log-probs of the tokens ({error!r}): is it vLLM, with the policy's tokens?"
            raise RequestFailure(self._address, advice, Failure.CONTRACT) from error
        if not all(-1e9 < value <= 1e-3 for value in values):
            raise RequestFailure(self._address, "gave log-probs that are not finite, or above 0", Failure.CONTRACT)
        return values


def of_labels(logprobs: Tensor, micro_batch: MicroBatch) -> Tensor:
    """Returns the log-probs of a micro-batch's labels [T], of those of all tokens of its batch; 0 on ignored labels."""
    source = micro_batch.source
    return torch.where(source < 0, 0.0, logprobs[source.clamp(min=0)])


def check_served_teacher(config: Config) -> None:
    """Checks that the server of a teacher answers. Collective. Raises LwzError, on every rank alike."""
    section = config.grpo.teacher_server
    if section.url is None:
        return
    if config.rollout.temperature != 1.0:
        advice = f"a server gives log-probs at temperature 1: set it to 1.0, or name a folder in grpo.teacher instead of {KEY}"
        raise ConfigError("rollout.temperature", config.rollout.temperature, advice)
    ServedTeacher(section).check()
