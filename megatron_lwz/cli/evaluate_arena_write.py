"""`lwz evaluate arena-write --prompts FILE --responses NAME=FILE … --output DIR [judge.key=value …]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_lwz.cli import common, evaluate_judge, option_types
from megatron_lwz.cli.evaluate_results import output_folder, show_estimates, write_json, write_rows
from megatron_lwz.errors import EngineError
from megatron_lwz.evaluation.arena_files import read_baselines, read_player
from megatron_lwz.evaluation.arena_write import LABELS, ArenaReport, Game, pairs, play, report
from megatron_lwz.evaluation.compare import judge_name
from megatron_lwz.evaluation.tasks import Task, read_tasks
from megatron_lwz.report.evaluation import arena_sections, write_page
from megatron_lwz.rewards.judge_prompts import PAIR_VERSIONS

SAMPLING = {"temperature": 0.0, "max_tokens": 1024}
"""The paper does not state it. Greedy, so that repeated questions differ as little as possible."""

Texts = Mapping[str, Mapping[str, str]]


def main(argv: Sequence[str]) -> None:
    """Plays the tournament and writes arena_write.json, its games and its page. Raises LwzError."""
    options = _parser().parse_intermixed_args(list(argv))
    tasks = read_tasks(options.prompts)
    models, baselines = _players(options, tasks)
    texts = {**models, **baselines}
    anchor = options.anchor or next(iter(baselines or models))
    if anchor not in texts:
        raise common.UsageError(f"--anchor {anchor}: no such player; there are {', '.join(texts)}")
    who = pairs(list(models), list(baselines), every=options.pairs == "all")
    if not who:
        raise common.UsageError("one player alone: give another --responses, a --baseline, or prompts with baselines")
    folder = common.check_folder(options.output, "--output")
    section = evaluate_judge.section_of(options, folder, SAMPLING)
    (games, incomplete), judged = evaluate_judge.judged(
        section,
        "judged",
        lambda judge, shown: play(tasks, texts, who, judge, repeats=options.repeats, shown=shown),
    )
    if not any(anchor in (game.first, game.second) for game in games):
        raise EngineError(section.url or "", f"{anchor}, whom the ratings are relative to, has no judged game")
    found = report(games, list(texts), anchor=anchor, anchor_elo=options.anchor_elo)
    main_player = next(iter(models))
    result: dict[str, Any] = {"kind": "arena_write", "name": main_player, "anchor": anchor}
    result |= {"anchor_elo": options.anchor_elo, "prompt_version": PAIR_VERSIONS["en"], "judge": judged}
    result |= {"prompts": len(tasks), "incomplete": incomplete} | found.as_json()
    result["metrics"] = {"Elo": result["elo"][main_player]} if main_player in result["elo"] else {}
    _write(folder, result, found, games)


def _players(options: argparse.Namespace, tasks: Sequence[Task]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (models, baselines), each name → task id → text.

    Baselines come from the prompts' file and from --baseline.
    """
    models: dict[str, Any] = {}
    baselines = read_baselines(tasks, options.prompts)
    for target, given in ((models, options.responses), (baselines, options.baseline)):
        for text in given:
            name, equals, path = text.rpartition("=")
            file = common.file_path(path)
            name = name if equals else file.stem
            if name in models or name in baselines:
                raise common.UsageError(f"{text}: there is a player named '{name}' already; write NAME=FILE")
            target[name] = read_player(file, tasks)
            missing = len(tasks) - len(target[name])
            if missing:
                warning = f"warning: {file}: {missing} of {len(tasks)} prompts have no response"
                common.console(stderr=True).print(warning, markup=False)
    return models, baselines


def _write(folder: Path, result: dict[str, Any], found: ArenaReport, games: Sequence[Game]) -> None:
    write_json(output_folder(folder) / "arena_write.json", result)
    write_rows(folder / "arena_write_games.jsonl", [vars(game) for game in games])
    page = folder / "arena_write.html"
    judge = judge_name(result["judge"])
    lead = f"Arena-Write, {found.games} games judged by {judge}, {result['anchor']} at {result['anchor_elo']:g}"
    write_page(page, result["name"], lead, arena_sections(found))
    show_estimates(f"Elo: {lead}", found.elo)
    show_estimates("The judge", {**found.bias, **found.consistency}, LABELS)
    if result["incomplete"]:
        text = f"{result['incomplete']} pairs are left out: one order or both got no verdict"
        common.console().print(text, markup=False)
    common.console().print(str(page), markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(prog="lwz evaluate arena-write", description="Pairwise judgements, Elo and win rates.")
    parser.add_argument("--prompts", metavar="FILE", type=Path, required=True, help="Arena-Write's file as it is")
    parser.add_argument(
        "--responses", metavar="[NAME=]FILE", action="append", required=True, help="of a model; may be given again"
    )
    parser.add_argument(
        "--baseline", metavar="[NAME=]FILE", action="append", default=[], help="of a baseline; may be given again"
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="where the results go")
    parser.add_argument(
        "--pairs",
        choices=("baselines", "all"),
        default="baselines",
        help="all: baselines and models meet each other too",
    )
    parser.add_argument("--anchor", metavar="NAME", help="whom ratings are relative to; default: the first baseline")
    parser.add_argument("--anchor-elo", type=option_types.finite, default=1000.0, help="its rating; default 1000")
    parser.add_argument(
        "--repeats", type=option_types.positive, default=1, help="times each order is asked; 2 shows self-consistency"
    )
    evaluate_judge.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
