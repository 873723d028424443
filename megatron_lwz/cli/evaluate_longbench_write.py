"""`lwz evaluate longbench-write --prompts FILE --responses FILE --output DIR [judge.key=value …]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_lwz.cli import common, evaluate_judge
from megatron_lwz.cli.evaluate_results import output_folder, show_estimates, warn, write_json, write_rows
from megatron_lwz.errors import DataError
from megatron_lwz.evaluation import longbench_write
from megatron_lwz.evaluation.compare import judge_name
from megatron_lwz.evaluation.longbench_write import LABELS, LongBenchReport, RulerStep
from megatron_lwz.evaluation.responses import Response, read_responses
from megatron_lwz.evaluation.tasks import Task, read_tasks
from megatron_lwz.reading import read_text
from megatron_lwz.report.evaluation import longbench_sections, write_page

SAMPLING = {"temperature": 0.5, "max_tokens": 1024}
"""Sampling settings of the judge in the public eval_quality.py."""


def main(argv: Sequence[str]) -> None:
    """Writes longbench_write.json, its rows and its page. Raises LwzError."""
    options = _parser().parse_intermixed_args(list(argv))
    tasks = read_tasks(options.prompts)
    responses, missing = _responses(options.responses, tasks)
    public, wording = _wording(options)
    steps = longbench_write.ruler(read_responses(options.ruler)) if options.ruler else []
    folder, name = common.check_folder(options.output, "--output"), options.name or options.responses.stem
    section = evaluate_judge.section_of(options, folder, SAMPLING)
    result: dict[str, Any] = {"name": name, "responses": str(options.responses), "missing": missing}
    if section.url is None:
        found = longbench_write.evaluate_now(responses)
        common.console().print("no judge.url: S_l only", markup=False)
    else:
        found, result["judge"] = evaluate_judge.judged(
            section,
            "judged",
            lambda judge, shown: longbench_write.evaluate(responses, judge, public=public, shown=shown),
        )
        result["judge"]["wording"] = wording
    result |= found.as_json() | {"ruler": [vars(step) for step in steps]}
    _write(folder, name, result, found, steps)


def _responses(path: Path, tasks: Sequence[Task]) -> tuple[list[Response], int]:
    """Returns the responses to the benchmark's prompts, and the number of prompts without one."""
    known = {task.id for task in tasks}
    responses = read_responses(path, tasks)
    strange = [response.id for response in responses if response.id not in known]
    if strange:
        raise DataError(path, f"response {strange[0]!r} answers no prompt of the file: are these its responses?")
    missing = len(known - {response.id for response in responses})
    if missing:
        warn(f"{missing} of {len(known)} prompts have no response")
    return responses, missing


def _wording(options: argparse.Namespace) -> tuple[str | None, str]:
    """Returns the public judge prompt, if there is one, and its origin."""
    path = options.judge_prompt
    if path == "ours":
        return None, "ours"
    path = common.file_path(path) if path else options.prompts.parent / "judge.txt"
    if not path.is_file() and not options.judge_prompt:
        return None, "ours"
    text = read_text(path)
    if "$INST$" not in text or "$RESPONSE$" not in text:
        raise DataError(path, "not LongBench-Write's judge.txt: $INST$ and $RESPONSE$ must stand in it")
    return text, str(path)


def _write(folder: Path, name: str, result: dict[str, Any], found: LongBenchReport, steps: Sequence[RulerStep]) -> None:
    write_json(output_folder(folder) / "longbench_write.json", result)
    write_rows(folder / "longbench_write_rows.jsonl", found.rows)
    page = folder / "longbench_write.html"
    by = f", judged by {judge_name(result['judge'])}" if "judge" in result else ""
    lead = f"LongBench-Write, {len(found.rows)} responses{by}"
    write_page(page, name, lead, longbench_sections(found, steps))
    show_estimates(f"{name}: {lead}", found.metrics, LABELS)
    if steps:
        longest = max(step.longest for step in steps)
        common.console().print(f"LongWrite-Ruler: longest response {longest} words + CJK characters", markup=False)
    common.console().print(str(page), markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(prog="lwz evaluate longbench-write", description="S_l, S_q and the longest output length.")
    parser.add_argument("--prompts", metavar="FILE", type=Path, required=True, help="longbench_write.jsonl as it is")
    parser.add_argument("--responses", metavar="FILE", type=Path, required=True, help="responses to it")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="where the results go")
    parser.add_argument("--ruler", metavar="FILE", type=Path, help="responses to longwrite_ruler.jsonl")
    parser.add_argument(
        "--judge-prompt", metavar="FILE", help="judge.txt, or 'ours'; default: judge.txt beside the prompts, else ours"
    )
    parser.add_argument("--name", help="shown in tables; default: the responses file's name")
    evaluate_judge.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
