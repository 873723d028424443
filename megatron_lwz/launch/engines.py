"""Waits for the engines that a launch has started, and checks that each fits the run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.errors import EngineError, LwzError
from megatron_lwz.http.retry import Failure, RequestFailure
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.contract import check_engine

FAILED = "failed-*"
"""Notes of engines that have ended for good, in the launch's folder."""
_PAUSE = 0.5


def wait_for_engines(config: Config, urls: Sequence[str], token: str | None, state: Path, *, within: float) -> None:
    """Returns when all engines answer and fit the run, the longest rollout included. `within` is in seconds.

    Raises EngineError, for the first engine that does not fit, or does not answer in time; LwzError when one has left a
    note in `state` that it has ended for good.
    """
    asyncio.run(_Wait(config, token, state, within).all(urls))


class _Wait:
    def __init__(self, config: Config, token: str | None, state: Path, within: float) -> None:
        self._config, self._token, self._state = config, token, state
        self._within, self._end = within, time.monotonic() + within

    async def all(self, urls: Sequence[str]) -> None:
        await asyncio.gather(*map(self._ready, urls))

    async def _ready(self, url: str) -> None:
        data, rollout = self._config.data, self._config.rollout
        longest = data.max_prompt_tokens + rollout.max_new_tokens
        tied = self._config.architecture().tie_word_embeddings
        async with EngineClient(url, self._token) as client:
            while not await _answers(client):
                self._look_for_failures()
                if time.monotonic() >= self._end:
                    late = f"does not answer within {self._within:.0f} s (launch.engines.start_within): see its log"
                    raise EngineError(url, late)
                await asyncio.sleep(_PAUSE)
            await check_engine(client, rollout, longest=longest, tied=tied)

    def _look_for_failures(self) -> None:
        """Raises LwzError with the first line of a note."""
        for note in sorted(self._state.glob(FAILED)):
            raise LwzError(note.read_text(encoding="utf-8", errors="replace")[:1000].strip() or str(note))


async def _answers(client: EngineClient) -> bool:
    try:
        await client.models()
    except RequestFailure as error:
        if error.kind in (Failure.CONNECTION, Failure.TIMEOUT, Failure.SERVER):
            return False
        raise
    return True
