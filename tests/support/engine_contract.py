"""The checks of an engine that runs already, asked from outside an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.contract import check_engine


def check_engines(
    urls: Sequence[str], token: str | None, section: RolloutSection, *, longest: int, tied: bool = False
) -> None:
    """Asks all engines at once, see `check_engine`. Not from inside an event loop."""

    async def check(url: str) -> None:
        async with EngineClient(url, token, timeout=section.request_timeout) as client:
            await check_engine(client, section, longest=longest, tied=tied)

    async def check_all() -> None:
        await asyncio.gather(*(check(url) for url in urls))

    asyncio.run(check_all())
