"""Asks a judge many questions, and fails early if the judge answers none of the first ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from megatron_lwz.errors import EngineError
from megatron_lwz.rewards.judge_client import Judge, Question, Verdict

T = TypeVar("T")
Shown = Callable[[int, int], None]
"""Callback that receives the number of questions done and the total number."""


async def ask_all(
    judge: Judge, questions: Sequence[Question], read: Callable[[str], T | None], shown: Shown = lambda *_: None
) -> list[Verdict[T] | None]:
    """Returns the verdicts, in order, with None for a question that got none.

    Raises EngineError when all of the first questions fail: then the key, the name or the address is wrong.
    """
    verdicts: list[Verdict[T] | None] = [None] * len(questions)
    patience = min(judge.concurrency, len(questions))
    work = iter(range(len(questions)))
    done = 0

    async def worker() -> None:
        nonlocal done
        for place in work:
            verdicts[place] = await judge.ask(questions[place], read)
            done += 1
            shown(done, len(questions))
            counters = judge.counters
            replied = counters["answered"] + counters["malformed"]
            if judge.last_failure is not None and not replied and counters["asked"] >= patience and done >= patience:
                raise judge.last_failure

    shown(0, len(questions))
    lost: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(patience):
                group.create_task(worker())
    except* EngineError as failed:
        lost = failed.exceptions[0]
    if lost is not None:  # if raised inside `except*`, early releases of Python 3.11 would wrap it into a group again
        raise lost
    return verdicts
