"""`lwz evaluate hello-bench --benchmark DIR --responses FILE … --output DIR [judge.key=value …]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_lwz.cli import common, evaluate_judge
from megatron_lwz.cli.evaluate_results import output_folder, show_estimates, warn, write_json, write_rows
from megatron_lwz.errors import DataError
from megatron_lwz.evaluation import hello_bench, judge_prompts
from megatron_lwz.evaluation import hello_bench_files as files
from megatron_lwz.evaluation.compare import judge_name
from megatron_lwz.evaluation.hello_bench import MEASURED, HelloReport
from megatron_lwz.evaluation.hello_bench_files import Item
from megatron_lwz.evaluation.responses import Response, read_responses
from megatron_lwz.report.evaluation import hello_sections, write_page
from megatron_lwz.writing import write_text

SAMPLING = {"temperature": 0.8, "max_tokens": 4096}
"""Sampling settings of the judge in the public llm_judge.py."""


def main(argv: Sequence[str]) -> None:
    """Judges responses, or reads existing judgements, and writes the benchmark's figures. Raises LwzError."""
    options = _parser().parse_intermixed_args(list(argv))
    if bool(options.responses) == bool(options.scores):
        raise common.UsageError("give --responses (to be judged) or --scores (judged already), one of them")
    if options.judge and options.responses:
        raise common.UsageError("--judge names who gave the scores of --scores; responses are judged by judge.model")
    items = files.read_benchmark(options.benchmark, options.length)
    weights = files.read_weights(options.benchmark, items)
    if weights is None:
        warn(f"{options.benchmark}: no weighted_scores.txt, so every item of a checklist counts alike")
    source = (options.responses or options.scores)[0]
    tasks = {item.task for item in items.values()}
    parts = [f"at least {options.length} words" if options.length else ", ".join(t for t in files.TASKS if t in tasks)]
    parts = [] if len(tasks) == len(files.TASKS) else parts
    cut = "; ".join([*parts, *(["equal weights"] if weights is None else [])])
    result: dict[str, Any] = {"name": options.name or source.stem, "cut": cut}
    responses = _responses(options.responses or options.scores, items)
    judgements = files.read_judgements(options.scores, items) if options.scores else None
    public = _public_prompt(options) if options.responses else None
    folder = common.check_folder(options.output, "--output")
    if judgements is not None:
        scores: Mapping[str, Sequence[float]] | None = judgements
        result["judge"] = {"model": options.judge or "unknown judge", "wording": "unknown: scores of a file"}
        if not options.judge:
            warn("the file does not say who judged; scores of different judges do not compare: name it by --judge")
    else:
        scores = _judge(options, folder, items, responses, public, result)
    found = hello_bench.summarise(items, responses, scores, weights)
    result |= {"responses": len(found.rows), "of": len(items), "missing": len(items) - len(found.rows)}
    if result["missing"]:
        warn(f"{result['missing']} of {len(items)} instructions have no response")
    _write(folder, result | found.as_json(), found)


def _responses(paths: Sequence[Path], items: Mapping[str, Item]) -> list[Response]:
    found: dict[str, Response] = {}
    for path in paths:
        for response in read_responses(path):
            if response.id not in items:
                raise DataError(path, f"response {response.id!r} answers no instruction here: are these its responses?")
            if response.id in found or response.sample:
                raise DataError(path, f"instruction {response.id} has several responses; the benchmark takes one")
            found[response.id] = response
    return list(found.values())


def _judge(
    options: argparse.Namespace,
    folder: Path,
    items: Mapping[str, Item],
    responses: Sequence[Response],
    public: tuple[str, str] | None,
    result: dict[str, Any],
) -> dict[str, list[float]] | None:
    """Returns id → scores of the checklist, None without a judge. Writes them in the public form too."""
    section = evaluate_judge.section_of(options, folder, SAMPLING)
    if section.url is None:
        common.console().print("no judge.url: lengths and repetition only", markup=False)
        return None
    verdicts, result["judge"] = evaluate_judge.judged(
        section,
        "judged",
        lambda judge, shown: hello_bench.judge_responses(items, responses, judge, public=public, shown=shown),
    )
    result["judge"]["wording"] = judge_prompts.checklist_question("", "", [], public).version
    judged = [(r, verdict) for r, verdict in zip(responses, verdicts, strict=True) if verdict is not None]
    lines = [files.judgement_row(items[r.id], r.text, v.value, v.text) + "\n" for r, v in judged]
    write_text(output_folder(folder) / "hello_bench_judgements.jsonl", "".join(lines), private=True)
    return {response.id: verdict.value for response, verdict in judged}


def _public_prompt(options: argparse.Namespace) -> tuple[str, str] | None:
    """Returns the public judge prompt, if there is one, None for ours."""
    if options.judge_prompt == "ours":
        return None
    path = files.find_beside(options.benchmark, "llm_judge.py")
    path = common.file_path(options.judge_prompt) if options.judge_prompt else path
    return judge_prompts.read_hello_bench_prompt(path) if path is not None else None


def _write(folder: Path, result: Mapping[str, Any], found: HelloReport) -> None:
    write_json(output_folder(folder) / "hello_bench.json", result)
    write_rows(folder / "hello_bench_rows.jsonl", found.rows)
    by = (
        f", judged by {judge_name(result['judge'])}, judge prompt: {result['judge']['wording']}"
        if "judge" in result
        else ""
    )
    lead = f"HelloBench, {result['responses']} of {result['of']} instructions{by}"
    lead += f", {result['cut']}" if result["cut"] else ""
    page = folder / "hello_bench.html"
    write_page(page, result["name"], lead, hello_sections(found))
    shown = {name: value for name, value in found.metrics.items() if not name.startswith("Category_")}
    show_estimates(f"{result['name']}: {lead}", shown, MEASURED)
    common.console().print(str(page), markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(prog="lwz evaluate hello-bench", description="HelloBench, its public files unchanged.")
    parser.add_argument("--benchmark", metavar="DIR", type=Path, required=True, help="a copy of Quehry/HelloBench")
    parser.add_argument(
        "--length", choices=files.LENGTHS, help="the length-constrained version: at least so many thousand words"
    )
    parser.add_argument(
        "--responses", metavar="FILE", type=Path, nargs="+", help="responses to the tasks, ours or the public script's"
    )
    parser.add_argument(
        "--scores", metavar="FILE", type=Path, nargs="+", help="judgements that exist, ours or the public script's"
    )
    parser.add_argument("--judge", metavar="NAME", help="who gave the scores of --scores, which the file does not say")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="where the results go")
    parser.add_argument(
        "--judge-prompt", metavar="FILE", help="llm_judge.py, or 'ours'; default: the copy's llm_judge.py, else ours"
    )
    parser.add_argument("--name", help="of the model, in tables; default: the first file's name")
    evaluate_judge.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
