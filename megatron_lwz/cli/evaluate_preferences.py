"""`lwz evaluate preferences PAIRS --output DIR [--config CONFIG] [section.key=value …]`: rewards checked on people."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from megatron_lwz.cli import common, evaluate_judge, option_types
from megatron_lwz.cli.evaluate_progress import Bar
from megatron_lwz.cli.evaluate_results import output_folder, write_json, write_rows
from megatron_lwz.config import Config, load_config
from megatron_lwz.data.preparation.sources import find_files
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.evaluation.agreement import Choice
from megatron_lwz.evaluation.human_pairs import HumanPair, HumanPairs, read_human_pairs
from megatron_lwz.evaluation.pair_scores import KeptScores, PairScores, choices_of, score_pairs
from megatron_lwz.evaluation.preference_report import PreferenceReport, report
from megatron_lwz.orchestrator.experience import group_advantages
from megatron_lwz.orchestrator.reward_server import open_reward_servers
from megatron_lwz.report.evaluation import write_page
from megatron_lwz.report.preferences import main_table, markdown, preference_sections
from megatron_lwz.rewards.composite import build_rewards, component_sections, with_fixed_criteria
from megatron_lwz.rewards.judge_base import JudgedComponent
from megatron_lwz.rollout.scoring import close_rewards
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.types import Group, RewardFn
from megatron_lwz.writing import write_text

COMBINED = "together"
"""Name of the row of all components as the config combines them."""
_AT_ONCE = 8


def main(argv: Sequence[str]) -> None:
    """Scores the pairs and writes preferences.json, its rows, page and Markdown. Raises LwzError."""
    options = _parser().parse_intermixed_args(list(argv))
    config = load_config(options.config, options.overrides)
    found = read_human_pairs(find_files([options.pairs]), columns=options.by, limit=options.limit)
    folder = common.check_folder(options.output, "--output")
    scored, judge = _score(config, folder, found.pairs)
    choices, masked = choices_of(found.pairs, scored)
    choices, masked = _with_combination(config, found.pairs, scored, choices, masked)
    weights = {name: entry.weight for name, entry in component_sections(config.reward).items()}
    result = report(choices, masked, weights, tolerance=options.tolerance, left_out=found.left_out, forms=found.forms)
    _write(folder, options, result, found, choices, judge)


def _score(
    config: Config, folder: Path, pairs: Sequence[HumanPair]
) -> tuple[list[dict[str, PairScores]], dict[str, Any]]:
    """Returns the scores of all pairs and the judge's record. Starts and stops the server of `reward.writing.hf`."""
    kept = KeptScores(folder / "score_cache.sqlite", config.reward)
    judge = config.judge.model_copy(
        update={
            "cache": config.judge.cache or str(RunPaths(folder).judge_cache),
            "rest_after": config.judge.rest_after or 0,  # an evaluation waits for its judge
        }
    )
    tokenizer = Tokenizer(config.tokenizer_dir()) if config.reward.length.unit == "tokens" else None
    with open_reward_servers(config, RunPaths(folder)) as served:
        rewards = build_rewards(with_fixed_criteria(served.reward), tokenizer, judge)

        async def run() -> list[dict[str, PairScores]]:
            try:
                with Bar("pairs") as bar:
                    return await score_pairs(pairs, rewards, kept, most=max(_AT_ONCE, judge.concurrency), shown=bar)
            finally:
                await close_rewards(rewards)

        try:
            scored = asyncio.run(run())
        finally:
            kept.close()
    return scored, _judge_record(rewards, config)


def _judge_record(rewards: Sequence[RewardFn], config: Config) -> dict[str, Any]:
    """Prints what the judge cost, and returns its settings and counts; nothing without a judge."""
    judge = next((reward.judge for reward in rewards if isinstance(reward, JudgedComponent)), None)
    if judge is None:
        return {}
    evaluate_judge.show_cost(judge.counters)
    return evaluate_judge.record(config.judge, judge)


def _with_combination(
    config: Config,
    pairs: Sequence[HumanPair],
    scored: Sequence[Mapping[str, PairScores]],
    choices: Sequence[Choice],
    masked: Mapping[str, Counter[str]],
) -> tuple[list[Choice], dict[str, Counter[str]]]:
    """Adds the advantages of the two texts, as training would compute them for a group of two, as one more component."""
    names = list(component_sections(config.reward))
    groups = [
        Group(number, pair.prompt, pair.rollouts, tuple({n: columns[n][place] for n in names} for place in (0, 1)), 0)
        for number, (pair, columns) in enumerate(zip(pairs, scored, strict=True))
    ]
    total = group_advantages(groups, config, names=names).total.tolist()
    counts = [component_sections(config.reward)[name].weight > 0 for name in names]
    missing, together = Counter[str](), []
    for choice, pair, row in zip(choices, pairs, total, strict=True):
        any_score = any(choice.scores[name] is not None for name, counted in zip(names, counts, strict=True) if counted)
        missing["no score"] += not any_score
        value = (row[pair.better], row[1 - pair.better]) if any_score else None
        together.append(
            Choice(
                choice.id,
                choice.document,
                choice.ratio,
                choice.categories,
                {**choice.scores, COMBINED: value},
                choice.orders,
            )
        )
    return together, {**masked, COMBINED: missing}


def _write(
    folder: Path,
    options: argparse.Namespace,
    result: PreferenceReport,
    found: HumanPairs,
    choices: Sequence[Choice],
    judge: Mapping[str, Any],
) -> None:
    name = options.name or options.pairs.resolve().stem
    lead = f"{result.pairs} human choices between two texts, {found.left_out.total()} rows left out"
    about = {"kind": "preferences", "name": name, "source": str(options.pairs)} | (
        {"judge": dict(judge)} if judge else {}
    )
    write_json(output_folder(folder) / "preferences.json", about | result.as_json())
    rows = [
        {
            "id": c.id,
            "ratio": c.ratio,
            "lengths": [p.lengths[p.better], p.lengths[1 - p.better]],
            "categories": c.categories,
            "scores": c.scores,
        }
        for c, p in zip(choices, found.pairs, strict=True)
    ]
    write_rows(folder / "preferences_rows.jsonl", rows)
    write_text(folder / "preferences.md", markdown(result, name, lead), private=True)
    write_page(folder / "preferences.html", name, lead, preference_sections(result))
    _show(f"{name}: {lead}", result)
    counts = [*found.forms.items(), *((f"left out {reason}", count) for reason, count in found.left_out.items())]
    common.console().print("; ".join(f"{what}: {count}" for what, count in counts if count), markup=False)
    common.console().print(str(folder / "preferences.html"), markup=False)


def _show(title: str, result: PreferenceReport) -> None:
    head, cells = main_table(result)
    shown = Table(title=escape(title), title_justify="left")
    for column in head[:-1]:  # the last one holds sentences
        shown.add_column(column, no_wrap=column == head[0])
    for row in cells:
        shown.add_row(*(escape(str(cell)) for cell in row[:-1]))
    common.console().print(shown)
    for component in result.components:
        common.console().print(f"{component.name}: {component.line}", markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(
        prog="lwz evaluate preferences",
        description="The reward components of a config against human choices between two texts: which agree with people, "
        "which follow length, which are noise.",
    )
    parser.add_argument("pairs", metavar="PAIRS", type=Path, help="a file of preference pairs, or a folder of them")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="where the results go")
    parser.add_argument("--config", metavar="CONFIG", type=Path, help="a config with the sections `reward` and `judge`")
    parser.add_argument(
        "overrides", metavar="section.key=value", nargs="*", help="e.g. judge.url=http://host:8000 judge.model=NAME"
    )
    parser.add_argument(
        "--tolerance",
        type=option_types.share,
        default=0.1,
        help="length-matched: the longer text has at most this share more words + CJK characters; default 0.1",
    )
    parser.add_argument(
        "--by",
        metavar="COLUMN",
        action="append",
        default=[],
        help="a column of categories beside the usual; may be given again",
    )
    parser.add_argument(
        "--limit", metavar="N", type=option_types.positive, help="at most N pairs, drawn by their digest"
    )
    parser.add_argument("--name", help="shown in tables; default: the file's name")
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
