"""`lwz evaluate constory --prompts FILE --responses FILE --output DIR [judge.key=value …]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_lwz.cli import common, evaluate_judge
from megatron_lwz.cli.evaluate_results import output_folder, show_estimates, warn, write_json, write_rows
from megatron_lwz.errors import DataError
from megatron_lwz.evaluation import constory
from megatron_lwz.evaluation import constory_files as files
from megatron_lwz.evaluation.compare import judge_name
from megatron_lwz.evaluation.constory import LABELS, ConStoryReport
from megatron_lwz.evaluation.constory_files import Errors, Story
from megatron_lwz.report.evaluation import charts, estimates_table, write_page
from megatron_lwz.report.evaluation_charts import intervals, positions

SAMPLING = {"temperature": 0.5, "max_tokens": 10_000}
"""Sampling settings of the judge in the public judge.py."""


def main(argv: Sequence[str]) -> None:
    """Checks stories, or reads an evaluation that exists, and writes the benchmark's figures. Raises LwzError."""
    options = _parser().parse_intermixed_args(list(argv))
    if bool(options.responses) == bool(options.evaluation):
        raise common.UsageError("give --responses (to be checked) or --evaluation (checked already), one of them")
    if options.responses and not options.prompts:
        raise common.UsageError("--responses needs --prompts, the benchmark's prompts.parquet")
    source = options.responses or options.evaluation
    result: dict[str, Any] = {"name": options.name or options.model or source.stem}
    if options.evaluation:
        stories, left = files.read_evaluations(options.evaluation, options.column)
        if left:
            warn(f"{left} rows are left out: they have no story, or no verdict on a category")
        errors: Sequence[Errors | None] | None = [story.errors for story in stories]
        result["judge"] = {"model": _judge_of_file(options, stories), "wording": "unknown: evaluation of a file"}
    else:
        stories, result["missing"] = _stories(options)
        errors = _check(options, stories, result)
    found = constory.summarise(stories, errors)
    if found.unjudged:
        warn(f"{found.unjudged} stories are left out: the judge gave no verdict on one of the five categories")
    _write(output_folder(options.output), result | found.as_json(), found)


def _stories(options: argparse.Namespace) -> tuple[list[Story], int]:
    prompts = files.read_prompts(options.prompts)
    stories, empty = files.read_stories(options.responses, prompts, options.model)
    if not stories:
        raise DataError(options.responses, "all its stories are empty")
    missing = len(prompts) - len(stories)
    if missing:
        warn(f"{missing} of {len(prompts)} prompts have no story ({empty} empty)")
    return stories, missing


def _judge_of_file(options: argparse.Namespace, stories: Sequence[Story]) -> str:
    named = sorted({story.judge for story in stories if story.judge})
    if options.judge and named and named != [options.judge]:
        raise common.UsageError(f"--judge {options.judge}: {options.evaluation} names its judge, {', '.join(named)}")
    if len(named) > 1:
        warn(f"{options.evaluation}: errors found by several judges, which may find more or fewer: {', '.join(named)}")
    if not named and not options.judge:
        warn(f"{options.evaluation} does not say who judged; densities of different judges do not compare: use --judge")
    return " and ".join(named) or options.judge or "unknown judge"


def _check(
    options: argparse.Namespace, stories: Sequence[Story], result: dict[str, Any]
) -> Sequence[Errors | None] | None:
    """Returns the errors of each story, None without a judge. Writes them in the public form too."""
    folder = common.check_folder(options.output, "--output")
    section = evaluate_judge.section_of(options, folder, SAMPLING)
    if options.judge:
        raise common.UsageError("--judge names who made an --evaluation; responses are checked by judge.model")
    if section.url is None:
        common.console().print("no judge.url: what rules find only", markup=False)
        return None
    templates = files.read_templates(options.benchmark) if options.benchmark else None
    errors, result["judge"] = evaluate_judge.judged(
        section,
        "checked",
        lambda judge, shown: constory.check_stories(stories, judge, templates=templates, shown=shown),
    )
    versions = {constory.contradictions_question("", category, templates).version for category in files.CATEGORIES}
    result["judge"]["wording"] = "ours" if templates is None else f"prompts of the copy ({', '.join(sorted(versions))})"
    files.write_evaluations(
        output_folder(folder) / "constory_evaluation.csv", stories, errors, judge_name(result["judge"])
    )
    return errors


def _write(folder: Path, result: Mapping[str, Any], found: ConStoryReport) -> None:
    write_json(folder / "constory.json", result)
    write_rows(folder / "constory_rows.jsonl", found.rows)
    by = f", judged by {judge_name(result['judge'])}" if "judge" in result else ""
    lead = f"ConStory-Bench, {len(found.rows)} stories{by}; lower is better"
    page = folder / "constory.html"
    densities = {LABELS.get(name, name): e for name, e in found.metrics.items() if name.startswith("ced")}
    where = positions(
        "errors per story", found.positions, worse=None, note="where the later passage begins", x_label="part"
    )
    sections = {
        "Scores": estimates_table(found.metrics, LABELS) + charts(intervals("Errors per 10,000 words", densities))
    }
    write_page(page, result["name"], lead, sections | {"Where the errors are": charts(where)})
    show_estimates(f"{result['name']}: {lead}", found.metrics, LABELS)
    common.console().print(str(page), markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(prog="lwz evaluate constory", description="ConStory-Bench, its public files unchanged.")
    parser.add_argument("--prompts", metavar="FILE", type=Path, help="prompts.parquet of the data set as it is")
    parser.add_argument(
        "--responses", metavar="FILE", type=Path, help="responses to it, or stories.parquet of the data set"
    )
    parser.add_argument("--model", metavar="NAME", help="which model's stories, of a stories.parquet")
    parser.add_argument(
        "--evaluation", metavar="CSV", type=Path, help="an evaluation that exists, ours or the public one's"
    )
    parser.add_argument(
        "--column", metavar="NAME", help="the story's column in it; default: the one that ends with _story"
    )
    parser.add_argument("--judge", metavar="NAME", help="who judged it, where the file does not say it")
    parser.add_argument(
        "--benchmark", metavar="DIR", type=Path, help="a copy of Picrew/ConStory-Bench: its questions; without it, ours"
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="where the results go")
    parser.add_argument("--name", help="of the model, in tables; default: the file's name")
    evaluate_judge.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
