"""Asks many questions at once, and fails early if a judge answers none of the first ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from megatron_lwz.errors import LwzError
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
    return await ask_each(judge, questions, [read] * len(questions), shown)


async def ask_each(
    judge: Judge,
    questions: Sequence[Question],
    reads: Sequence[Callable[[str], T | None]],
    shown: Shown = lambda *_: None,
) -> list[Verdict[T] | None]:
    """`ask_all` of questions whose replies are read in different ways, one of `reads` for each."""
    verdicts: list[Verdict[T] | None] = [None] * len(questions)
    patience = min(judge.concurrency, len(questions))

    async def ask(place: int) -> None:
        verdicts[place] = await judge.ask(questions[place], reads[place])

    def check(done: int) -> None:
        if done >= patience:
            refuse_silence(judge, patience)

    await at_once(ask, len(questions), patience, shown, check)
    return verdicts


async def at_once(
    one: Callable[[int], Awaitable[None]], total: int, workers: int, shown: Shown, check: Callable[[int], None]
) -> None:
    """Does `one` for every place below `total`, so many at once. `check` gets the number done, and may raise.

    Raises the first LwzError, and ends what is in progress.
    """
    work, done = iter(range(total)), 0

    async def worker() -> None:
        nonlocal done
        for place in work:
            await one(place)
            done += 1
            shown(done, total)
            check(done)

    shown(0, total)
    lost: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(worker())
    except* LwzError as failed:
        lost = failed.exceptions[0]
    if lost is not None:  # if raised inside `except*`, early releases of Python 3.11 would wrap it into a group again
        raise lost


def refuse_silence(judge: Judge, patience: int) -> None:
    """Raises the judge's EngineError when so many questions were asked and none was replied to."""
    replied = judge.counters["answered"] + judge.counters["malformed"]
    if judge.last_failure is not None and not replied and judge.counters["asked"] >= patience:
        raise judge.last_failure
