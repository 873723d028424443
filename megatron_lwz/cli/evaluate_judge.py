"""The judge of an evaluation command: its options, its settings, and what it cost."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_lwz.cli.common import console
from megatron_lwz.config import load_config
from megatron_lwz.config.sections import JudgeSection
from megatron_lwz.rewards.judge import Judge

CACHE = "judge_cache.sqlite"


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--config FILE` and `judge.key=value …`: the `judge` section of a config says who judges."""
    parser.add_argument("--config", metavar="CONFIG", type=Path, help="a config whose `judge` section names the judge")
    parser.add_argument(
        "overrides", metavar="judge.key=value", nargs="*", help="e.g. judge.url=http://host:8000 judge.model=NAME"
    )


def section_of(options: argparse.Namespace, folder: Path, sampling: Mapping[str, Any]) -> JudgeSection:
    """The judge's settings: `sampling` is the benchmark's own, for what neither config nor command line sets.

    Replies are kept under `folder` unless `judge.cache` names another file. Raises LwzError.
    """
    section = load_config(options.config, options.overrides).judge
    given = section.model_fields_set
    chosen = {name: value for name, value in sampling.items() if name not in given}
    if section.cache is None:
        chosen["cache"] = str(folder / CACHE)
    return section.model_copy(update=chosen)


def summary(judge: Judge, section: JudgeSection) -> dict[str, Any]:
    """For result files: who judged, how it was sampled, and what became of the questions. Never the key."""
    settings = section.model_dump(include={"model", "temperature", "top_p", "max_tokens", "body"})
    return settings | {"counters": dict(sorted(judge.counters.items()))}


def show_counters(judge: Judge) -> None:
    """Prints what the judge was asked, and what got no verdict."""
    counters = judge.counters
    failed = {name.removeprefix("failed/"): count for name, count in counters.items() if name.startswith("failed/")}
    text = f"judge: {counters['asked']} questions, {counters['cached']} from the cache, {counters['requests']} requests"
    text += f", {counters['prompt_tokens'] + counters['completion_tokens']} tokens"
    text += "".join(f", {count} without a verdict ({name})" for name, count in sorted(failed.items()))
    console().print(text, markup=False)
