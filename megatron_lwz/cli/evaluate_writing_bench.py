"""`lwz evaluate writing-bench --benchmark DIR --responses FILE --output DIR [judge.key=value …]`."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_lwz.cli import common, evaluate_judge, option_types
from megatron_lwz.cli.evaluate_results import output_folder, show_estimates, warn, write_json
from megatron_lwz.errors import DataError
from megatron_lwz.evaluation import judge_prompts
from megatron_lwz.evaluation import writing_bench_files as files
from megatron_lwz.evaluation.compare import judge_name
from megatron_lwz.evaluation.responses import Response, read_responses
from megatron_lwz.evaluation.statistics import Estimate
from megatron_lwz.evaluation.writing_bench import Judged, aggregate, judge_responses
from megatron_lwz.evaluation.writing_bench_files import Benchmark, Scores
from megatron_lwz.report.evaluation import write_page, writing_bench_sections
from megatron_lwz.writing import write_text

Wording = tuple[str, str] | None


def main(argv: Sequence[str]) -> None:
    """Judges responses, or reads existing scores, and writes the benchmark's figures. Raises LwzError."""
    options = _parser().parse_intermixed_args(list(argv))
    if (options.responses is None) == (options.scores is None):
        raise common.UsageError("give --responses (to be judged) or --scores (judged already), one of them")
    if options.judge and options.responses:
        raise common.UsageError("--judge names who gave the scores of --scores; responses are judged by judge.model")
    benchmark = files.read_benchmark(options.benchmark)
    folder = common.check_folder(options.output, "--output")
    source = options.responses or options.scores
    result: dict[str, Any] = {"kind": "writing_bench", "name": options.name or source.stem, "era": benchmark.era}
    scores: Mapping[int, Scores]
    if options.scores:
        scores, repeated = files.read_scores(options.scores, benchmark)
        if repeated:
            warn(f"{options.scores}: {repeated} rows were scored twice; the later one counts, once")
        result |= {"wording": "unknown: scores of a file", "judge": {"model": _judge_of_file(options, scores)}}
    else:
        judged = _judge(options, benchmark, folder, result)
        scores = judged.scores
        lines = [files.scores_as_row(index, found) + "\n" for index, found in scores.items()]
        output_folder(folder / "scores")
        result["scores"] = f"scores/{result['name'].replace('/', '_')}.jsonl"
        write_text(folder / result["scores"], "".join(lines), private=True)
    if not scores:
        raise DataError(source, "no query has all its criteria scored: see the judge's counters above")
    found = aggregate(benchmark, scores)
    result |= {"queries": len(scores), "of": len(benchmark.queries)}
    result["metrics"] = {name: value.as_json() for name, value in found.items()}
    _write(folder, result, found)


def _judge(options: argparse.Namespace, benchmark: Benchmark, folder: Path, result: dict[str, Any]) -> Judged:
    """Judges the responses. Records in `result` the judge, the wording of its prompt, and what is missing."""
    public, wording = _wording(options, benchmark)
    section = evaluate_judge.section_of(options, folder, files.JUDGE_SAMPLING[benchmark.era])
    responses = _responses(options.responses, benchmark)
    judged, result["judge"] = evaluate_judge.judged(
        section,
        "scored",
        lambda judge, shown: judge_responses(
            benchmark, responses, judge, public=public, evaluations=options.evaluations, shown=shown
        ),
    )
    missing = len(benchmark.queries) - len(responses)
    result |= {"wording": wording, "missing": missing, "incomplete": list(judged.incomplete)}
    if missing:
        warn(f"{missing} of {len(benchmark.queries)} queries have no response")
    if judged.incomplete:
        warn(f"{len(judged.incomplete)} queries are left out: the judge gave no score for one of their criteria")
    return judged


def _judge_of_file(options: argparse.Namespace, scores: Mapping[int, Scores]) -> str:
    """Returns who gave the scores of a file: the models that it names, else `--judge`."""
    named = files.judges_of(scores)
    if options.judge and named and named != [options.judge]:
        raise common.UsageError(f"--judge {options.judge}: {options.scores} names its judge, {', '.join(named)}")
    if len(named) > 1:
        warn(f"{options.scores}: scores of several judges, whose scales may differ: {', '.join(named)}")
    if not named and not options.judge:
        warn(f"{options.scores} does not say who judged; scores of different judges do not compare: name it by --judge")
    return " and ".join(named) or options.judge or "unknown judge"


def _responses(path: Path, benchmark: Benchmark) -> list[Response]:
    responses = read_responses(path)
    for response in responses:
        if not response.id.isdecimal() or int(response.id) not in benchmark.queries:
            advice = (
                f"response {response.id!r} answers no query of {benchmark.era}: are these responses to the other era?"
            )
            raise DataError(path, advice)
        if response.sample:
            raise DataError(path, f"query {response.id} has several responses; the benchmark takes one")
    return responses


def _wording(options: argparse.Namespace, benchmark: Benchmark) -> tuple[Wording, str]:
    """Returns the public prompt of the benchmark's era, and its name.

    Falls back to our prompt when the copy of the benchmark holds none, or if asked for.
    """
    if options.judge_prompt == "ours":
        return None, "ours"
    path = common.file_path(options.judge_prompt) if options.judge_prompt else files.find_prompt(options.benchmark)
    if path is None:
        return None, "ours"
    public = judge_prompts.read_writing_bench_prompt(path)
    version = judge_prompts.criterion_question("", "", {}, public).version
    era = files.PROMPT_ERAS.get(version)
    if era is not None and era != benchmark.era:
        advice = f"is the prompt of {era}, the queries are of {benchmark.era}: take both from one version, or 'ours'"
        raise DataError(path, advice)
    return public, f"prompt.py of {era}" if era else f"{path} (of no known era)"


def _write(folder: Path, result: Mapping[str, Any], found: Mapping[str, Estimate]) -> None:
    write_json(output_folder(folder) / "writing_bench.json", result)
    judge = judge_name(result["judge"])
    with (folder / "writing_bench.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        figures = {name: e.value for name, e in found.items() if name != "Overall"}
        rows.writerow(["Model", "Overall", "Count", *figures, "Era", "Judge"])
        values = [found["Overall"].value, result["queries"], *figures.values()]
        rows.writerow([result["name"], *values, result["era"], judge])
    page = folder / "writing_bench.html"
    lead = (
        f"WritingBench of {result['era']}, judged by {judge}, {result['queries']} of {result['of']} queries, "
        f"judge prompt: {result['wording']}"
    )
    write_page(page, result["name"], lead, writing_bench_sections(found, judge))
    shown = {name: value for name, value in found.items() if not name.startswith("Domain2")}
    show_estimates(f"{result['name']}: {lead}", shown)
    common.console().print(str(page), markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(prog="lwz evaluate writing-bench", description="WritingBench, its public files unchanged.")
    parser.add_argument("--benchmark", metavar="DIR", type=Path, required=True, help="a copy of X-PLUG/WritingBench")
    parser.add_argument("--responses", metavar="FILE", type=Path, help="responses to benchmark_all.jsonl")
    parser.add_argument("--scores", metavar="FILE", type=Path, help="scores that exist, ours or the public script's")
    parser.add_argument(
        "--judge", metavar="NAME", help="who gave the scores of --scores, where the file does not say it"
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="where the results go")
    parser.add_argument(
        "--evaluations", metavar="N", type=option_types.positive, default=1, help="scores per criterion; default 1"
    )
    parser.add_argument(
        "--judge-prompt", metavar="FILE", help="prompt.py, or 'ours'; default: the copy's prompt.py, else ours"
    )
    parser.add_argument("--name", help="of the model, in tables; default: the file's name")
    evaluate_judge.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
