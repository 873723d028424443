"""`lwz evaluate curve RESPONSES|RUN_DIR|RUNS_FILE --output DIR [judge.key=value …]`: where in a text quality decays."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_lwz.cli import common, evaluate_judge, option_types
from megatron_lwz.cli.evaluate_results import output_folder, show_estimates, warn, write_json, write_rows
from megatron_lwz.errors import DataError
from megatron_lwz.evaluation import curve, longform_files
from megatron_lwz.evaluation.asking import Shown
from megatron_lwz.evaluation.compare import judge_name
from megatron_lwz.evaluation.curve import CHANGE, LABELS, CurveReport
from megatron_lwz.evaluation.journaled import read_run
from megatron_lwz.evaluation.longform_files import Rubric, Story
from megatron_lwz.evaluation.parts import LEAST, Piece, cut_responses
from megatron_lwz.evaluation.responses import read_responses
from megatron_lwz.evaluation.slop import read_slop
from megatron_lwz.evaluation.tasks import read_tasks
from megatron_lwz.report.chapter_curve import curve_sections, labels, verdict
from megatron_lwz.report.evaluation import write_page
from megatron_lwz.rewards.judge_client import Judge

Marks = list[list[dict[str, float] | None]]
PARTS = 8
"""Parts of a text unless others are asked for: the chapters of EQ-Bench's long-form benchmark."""


def main(argv: Sequence[str]) -> None:
    """Writes curve.json, curve_rows.jsonl and curve.html. Raises LwzError."""
    options = _parser().parse_intermixed_args(list(argv))
    name = options.name or options.responses.resolve().stem
    rubric = longform_files.read_rubric(options.longform) if options.longform else None
    slop = read_slop(options.longform) if options.longform else None
    stories, pieces, about = _read(options)
    folder = common.check_folder(options.output, "--output")
    result: dict[str, Any] = {"name": name, "responses": str(options.responses)} | about
    marks = _marks(options, folder, stories, pieces, rubric, result)
    lower = [name for name in rubric.criteria if name.lower() in rubric.negative] if rubric else []
    found = curve.summarise(pieces, slop=slop, marks=marks, lower_is_better=lower)
    if slop is None:
        common.console().print("no --longform: no slop score", markup=False)
    _write(folder, name, result | found.as_json(), found)


def _read(options: argparse.Namespace) -> tuple[list[Story] | None, list[Piece], dict[str, Any]]:
    """Returns the stories of a runs file, else None, then the texts in parts, and what result files say about them."""
    path: Path = options.responses
    if path.suffix == ".json" and path.is_file() and longform_files.is_runs_file(path):
        stories = longform_files.read_stories(path, options.run)
        return (
            stories,
            [longform_files.as_piece(s) for s in stories],
            {"source": "stories of EQ-Bench's benchmark", "cut": "chapters"},
        )
    if options.run is not None:
        raise common.UsageError("--run chooses a run of EQ-Bench's runs file; this is none")
    if path.is_dir():
        responses, source = read_run(path, options.step)
    else:
        tasks = read_tasks(options.prompts) if options.prompts else ()
        responses, source = read_responses(path, tasks), "responses"
    parts = options.parts or PARTS
    pieces, short = cut_responses(responses, parts=parts, every=options.every, chapters=options.chapters)
    need, cut = f"{LEAST} words + CJK characters per part", f"{parts} parts"
    if options.every:
        need, cut = f"{2 * options.every} words", f"every {options.every} words"
    elif options.chapters:
        need, cut = "two chapters", "chapters"
    if not pieces:
        raise DataError(path, f"none of its {len(responses)} texts has {need}: ask for other parts")
    if short:
        warn(f"{short} of {len(responses)} texts have not {need} and are left out")
    return None, pieces, {"source": source, "cut": cut, "short": short}


def _marks(
    options: argparse.Namespace,
    folder: Path,
    stories: list[Story] | None,
    pieces: list[Piece],
    rubric: Rubric | None,
    result: dict[str, Any],
) -> Marks | None:
    """Returns the marks of every part: the judge's, or those of the runs file. Records in `result` whose they are."""
    section = evaluate_judge.section_of(options, folder, longform_files.SAMPLING if stories is not None else {})
    if section.url is None:
        return _marks_of_file(stories, rubric, result)

    async def work(judge: Judge, shown: Shown) -> Marks:
        if stories is not None and rubric is not None:
            return await longform_files.judge_chapters(stories, rubric, judge, shown)
        return await curve.judge_parts(pieces, judge, shown)

    if stories is not None and rubric is None:
        raise common.UsageError("to judge chapters give --longform DIR: the benchmark's prompt and criteria are there")
    if any(piece.prompt is None for piece in pieces):
        raise DataError(
            options.responses, "has rows without a prompt, which the judge needs: name their file by --prompts"
        )
    marks, result["judge"] = evaluate_judge.judged(section, "judged", work)
    result["judge"]["wording"] = "ours, 1 to 10" if stories is None else "EQ-Bench long-form, 0 to 20"
    return marks


def _marks_of_file(stories: list[Story] | None, rubric: Rubric | None, result: dict[str, Any]) -> Marks | None:
    if stories is None or not any(mark for story in stories for mark in story.marks):
        common.console().print("no judge.url: no quality", markup=False)
        return None
    if rubric is None:
        warn("the file's marks are left out: their weights are in a copy of the benchmark, named by --longform DIR")
        return None
    judges = sorted({story.judge for story in stories})
    result["judge"] = {"model": " and ".join(judges) or "unknown", "wording": "marks of the file, 0 to 20"}
    if len(judges) > 1:
        warn(f"the file's marks are of several judges, whose scales differ: {', '.join(judges)}")
    return [[longform_files.with_score(mark, rubric) for mark in story.marks] for story in stories]


def _write(folder: Path, name: str, result: dict[str, Any], found: CurveReport) -> None:
    write_json(output_folder(folder) / "curve.json", result)
    write_rows(folder / "curve_rows.jsonl", found.rows)
    judge = f", judged by {judge_name(result['judge'])} ({result['judge']['wording']})" if "judge" in result else ""
    told = ", ".join(dict.fromkeys((result["source"], result["cut"])))  # a file of chapters is cut where they end
    lead = f"{len(found.rows)} texts, {told}{judge}"
    page = folder / "curve.html"
    x_label = "chapter" if result["cut"] == "chapters" else f"part of the text ({result['cut']})"
    write_page(page, name, lead, curve_sections(found, x_label))
    changes = {
        key: e for key, e in found.metrics.items() if key.startswith(CHANGE) and key.removeprefix(CHANGE) in LABELS
    }
    show_estimates(f"{name}: {lead}; last quarter minus first", changes, labels(changes))
    for metric in (name for name in found.decays if name in LABELS):
        common.console().print(f"{LABELS[metric]}: {verdict(found, metric)}", markup=False)
    common.console().print(str(page), markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(
        prog="lwz evaluate curve",
        description="Quality, slop and repetition over the position in the text: where it decays.",
    )
    parser.add_argument(
        "responses",
        metavar="RESPONSES|RUN_DIR|RUNS_FILE",
        type=Path,
        help="rows with `response`, a run, or longform_bench_runs.json of EQ-Bench's long-form benchmark",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="where the results go")
    parser.add_argument("--prompts", metavar="FILE", type=Path, help="for rows without their own prompt")
    parser.add_argument(
        "--step",
        metavar="N",
        type=option_types.not_negative,
        help="of a run: after how many updates; default: the newest",
    )
    parser.add_argument("--run", metavar="NAME", help="which run of a RUNS_FILE that holds several")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--parts", metavar="N", type=option_types.positive, help=f"cut every text into N equal parts; default {PARTS}"
    )
    size.add_argument(
        "--every",
        metavar="WORDS",
        type=option_types.positive,
        help="instead: parts of about so many words + CJK characters",
    )
    parser.add_argument(
        "--longform",
        metavar="DIR",
        type=Path,
        help="a copy of EQ-bench/longform-writing-bench: slop lists, prompt, criteria",
    )
    size.add_argument("--chapters", action="store_true", help="instead: the text's own chapters, by their headings")
    parser.add_argument("--name", help="shown in tables; default: the file's name")
    evaluate_judge.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
