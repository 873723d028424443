"""Waits for the engines that a launch has started, and checks that each fits the run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from megatron_lwz.config import Config
from megatron_lwz.errors import EngineError
from megatron_lwz.http.retry import Failure, RequestFailure
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.contract import check_engine

_PAUSE = 0.5


def wait_for_engines(config: Config, urls: Sequence[str], token: str | None, *, within: float) -> None:
    """Returns when all engines answer and fit the run, the longest rollout included. `within` is in seconds.

    Raises EngineError, for the first engine that does not fit, or does not answer in time.
    """
    asyncio.run(_wait(config, urls, token, time.monotonic() + within, within))


async def _wait(config: Config, urls: Sequence[str], token: str | None, end: float, within: float) -> None:
    await asyncio.gather(*(_ready(config, url, token, end, within) for url in urls))


async def _ready(config: Config, url: str, token: str | None, end: float, within: float) -> None:
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    tied = config.architecture().tie_word_embeddings
    async with EngineClient(url, token) as client:
        while not await _answers(client):
            if time.monotonic() >= end:
                raise EngineError(url, f"does not answer within {within:.0f} s (launch.engines.start_within): see its log")
            await asyncio.sleep(_PAUSE)
        await check_engine(client, config.rollout, longest=longest, tied=tied)


async def _answers(client: EngineClient) -> bool:
    try:
        await client.models()
    except RequestFailure as error:
        if error.kind in (Failure.CONNECTION, Failure.TIMEOUT, Failure.SERVER):
            return False
        raise
    return True
