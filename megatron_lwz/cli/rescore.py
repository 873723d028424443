"""`lwz rescore RUN [section.key=value …]`: scores stored rollouts with another reward config and compares."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from megatron_lwz.cli import common, option_types
from megatron_lwz.cli.common import console
from megatron_lwz.cli.evaluate_progress import Bar
from megatron_lwz.config import Config, load_config
from megatron_lwz.errors import ConfigError, DataError
from megatron_lwz.orchestrator.rescore import Rescored, Rescorer
from megatron_lwz.orchestrator.rescore_summary import flat_rows, summarize
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.writing import write_text

_SECTIONS = ("reward", "judge", "grpo")
"""Sections that determine rewards and advantages. All other sections stay those of the run."""


def main(argv: Sequence[str]) -> None:
    """Prints the comparison; writes JSON and CSV if asked to. Raises LwzError."""
    parser = common.Parser(
        prog="lwz rescore",
        description="Rewards and advantages of a run's stored rollouts under another reward config. Reads only, also while "
        "the run goes on.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder: it holds config.yaml and journal.sqlite")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="of reward, judge or grpo")
    parser.add_argument(
        "--config", metavar="YAML", type=Path, help="take reward, judge and grpo from here, then overrides"
    )
    parser.add_argument(
        "--steps", metavar="A-B", type=option_types.steps, help="only groups that these training steps consumed"
    )
    parser.add_argument("--limit", metavar="N", type=option_types.positive, help="only the last N groups")
    parser.add_argument("--ask", action="store_true", help="ask judges and servers where their settings changed")
    parser.add_argument("--recompute", action="store_true", help="compute rules again even where nothing changed")
    parser.add_argument("--json", metavar="FILE", type=Path, help="the comparison as JSON")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="one line per rollout")
    options = parser.parse_intermixed_args(list(argv))
    for option, path in (("--json", options.json), ("--csv", options.csv)):
        if path is not None:
            common.check_writable(path, option)
    old, new = _configs(options.run, options.config, options.overrides)
    rescorer = Rescorer(old, new, ask=options.ask, again=options.recompute)
    rows = _rescore(rescorer, RunPaths(options.run).journal, options.steps, options.limit)
    summary = summarize(rescorer, rows)
    if old.reward.shuffle or new.reward.shuffle:
        summary["note"] = "reward.shuffle is left out: it hands scores to other rollouts of the step"
    _show(options.run, summary)
    if options.json:
        _write(options.json, json.dumps({"run": str(options.run), **summary}, ensure_ascii=False, indent=1) + "\n")
    if options.csv:
        _write(options.csv, _csv(*flat_rows(rescorer, rows)))


def _configs(run: Path, file: Path | None, overrides: Sequence[str]) -> tuple[Config, Config]:
    for text in overrides:
        section = text.partition("=")[0].partition(".")[0]
        if "=" in text and section not in _SECTIONS:
            raise ConfigError(
                text.partition("=")[0],
                text.partition("=")[2],
                "rescore changes only reward, judge and grpo: leave it out",
            )
    old = load_config(RunPaths(run).config)
    source = load_config(file if file is not None else RunPaths(run).config, overrides)
    return old, old.model_copy(update={name: getattr(source, name) for name in _SECTIONS})


def _rescore(rescorer: Rescorer, journal: Path, steps: tuple[int, int] | None, limit: int | None) -> list[Rescored]:
    with JournalReader(journal) as reader, reader.still(), Bar("groups") as bar:
        consumed = reader.consumed()
        ids = [number for number in reader.scored() if steps is None or _inside(consumed.get(number), steps)]
        ids = ids[-limit:] if limit else ids
        if not ids:
            which = f"of steps {steps[0]} to {steps[1]}" if steps else "with scores"
            raise DataError(journal, f"holds no group {which} yet: wait for the run, or choose other --steps")
        return rescorer.run(reader.texts(ids), consumed, lambda done: bar(done, len(ids)))


def _inside(step: int | None, steps: tuple[int, int]) -> bool:
    return step is not None and steps[0] <= step <= steps[1]


def _show(run: Path, summary: dict[str, Any]) -> None:
    steps = summary["steps"]
    span = f", steps {steps[0]} to {steps[1]}" if steps else ""
    out = console()
    table = Table(title=escape(f"{run}: {summary['rollouts']} rollouts{span}"), title_justify="left")
    masked = any(row["masked_old"] or row["masked_new"] for row in summary["components"])
    heads = ("component", "scores", "weight", "mean", "changed", *(["masked"] if masked else []), "ranks", "share")
    for head in heads:
        table.add_column(head, justify="left" if head in heads[:2] else "right", no_wrap=True)
    for row in summary["components"]:
        table.add_row(
            escape(row["name"]), row["source"], _pair(row, "weight"), _pair(row, "mean"), _share(row["changed"]),
            *([_pair(row, "masked", "{:.0f}")] if masked else []), _number(row["rank_correlation"]),
            _pair(row, "share", "{:.0%}"),
        )  # fmt: skip
    out.print(table)
    out.print("ranks: correlation of old and new scores inside groups; share: of the sum of |advantages|", style="dim")
    names = [row["name"] for row in summary["components"]]
    table = Table(title="by length of the answer, words + CJK characters", title_justify="left")
    for head in ("length", "rollouts", "advantage", *names):
        table.add_column(escape(head), justify="right")
    for row in summary["lengths"]:
        cells = [_pair(row["components"][name]) for name in names]
        table.add_row(f"{row['from']}–{row['to']}", str(row["rollouts"]), _pair(row, "advantage"), *cells)
    out.print(table)
    found = summary["advantages"]
    out.print(
        f"best rollout changes in {found['best_changes']} of {found['compared_groups']} groups; "
        f"rank correlation of advantages inside groups {_number(found['rank_correlation'])}; "
        f"{_share(found['sign_changes'])} change sign; "
        f"groups without a gradient {found['silent_groups_old']} → {found['silent_groups_new']}",
        markup=False,
    )
    absent = [row["name"] for row in summary["components"] if row["source"] in ("outdated", "absent")]
    if absent:
        out.print(f"not asked again, so not under the new settings: {', '.join(absent)} (--ask)", markup=False)
    if "note" in summary:
        out.print(summary["note"], markup=False)


def _pair(row: dict[str, Any], name: str = "", form: str = "{:.3g}") -> str:
    prefix = f"{name}_" if name else ""
    old, new = row[f"{prefix}old"], row[f"{prefix}new"]
    return " → ".join("–" if value is None else form.format(value) for value in (old, new))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _csv(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return target.getvalue()


def _write(path: Path, text: str) -> None:
    write_text(path, text, private=True)
    console().print(str(path), markup=False)


if __name__ == "__main__":
    sys.exit(common.run(main))
