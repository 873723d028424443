"""The judge of an evaluation command: its options, its settings, and a summary of its cost."""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from megatron_lwz.cli.common import console
from megatron_lwz.cli.evaluate_progress import Bar
from megatron_lwz.cli.evaluate_results import warn
from megatron_lwz.config import load_config
from megatron_lwz.config.sections import JudgeSection
from megatron_lwz.evaluation.asking import Shown
from megatron_lwz.rewards.judge_client import Judge
from megatron_lwz.run_paths import RunPaths

T = TypeVar("T")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--config FILE` and `judge.key=value …`: the `judge` section of a config selects the judge."""
    parser.add_argument("--config", metavar="CONFIG", type=Path, help="a config whose `judge` section names the judge")
    parser.add_argument(
        "overrides", metavar="judge.key=value", nargs="*", help="e.g. judge.url=http://host:8000 judge.model=NAME"
    )


def section_of(options: argparse.Namespace, folder: Path, sampling: Mapping[str, Any]) -> JudgeSection:
    """Returns the judge's settings.

    `sampling` holds the benchmark's own values for settings that neither config nor command line gives. Replies are
    kept under `folder` unless `judge.cache` names another file. Raises LwzError.
    """
    section = load_config(options.config, options.overrides).judge
    given = section.model_fields_set
    chosen = {name: value for name, value in sampling.items() if name not in given}
    if section.cache is None:
        chosen["cache"] = str(RunPaths(folder).judge_cache)
    return section.model_copy(update=chosen)


def judged(section: JudgeSection, title: str, work: Callable[[Judge, Shown], Awaitable[T]]) -> tuple[T, dict[str, Any]]:
    """Runs `work(judge, shown)` under a progress bar, prints its cost, and returns its result and the judge's record.

    The record is for result files: model and sampling settings of the judge, and counts of the questions' outcomes. It
    never contains the key. Raises LwzError.
    """

    async def run() -> tuple[T, Judge]:
        async with Judge(section) as judge:
            with Bar(title) as bar:
                found = await work(judge, bar)
            return found, judge

    found, judge = asyncio.run(run())
    show_cost(judge.counters)
    return found, record(section, judge)


def record(section: JudgeSection, judge: Judge) -> dict[str, Any]:
    """Returns the judge's settings, who answered how often, and counts of the questions' outcomes, for result files.

    A name like "latest" may stand for another model tomorrow, so the one that the server names with each reply is kept.
    Warns of several, because their scales may differ.
    """
    settings = section.model_dump(include={"model", "temperature", "top_p", "max_tokens", "body"})
    names = dict(judge.answered_by.most_common())
    if len(names) > 1:
        listed = ", ".join(f"{name} ({count})" for name, count in names.items())
        warn(
            f"the verdicts are of several models, whose scales may differ: {listed}; a fresh judge.cache separates them"
        )
    return settings | {"answered_by": names, "counters": dict(sorted(judge.counters.items()))}


def show_cost(counters: Counter[str]) -> None:
    """Prints how many questions were asked, what they cost, and how many got no verdict."""
    failed = {name.removeprefix("failed/"): count for name, count in counters.items() if name.startswith("failed/")}
    text = f"judge: {counters['asked']} questions, {counters['cached']} from the cache, {counters['requests']} requests"
    text += f", {counters['prompt_tokens'] + counters['completion_tokens']} tokens"
    text += "".join(f", {count} without a verdict ({name})" for name, count in sorted(failed.items()))
    console().print(text, markup=False)
