"""`lwz evaluate longgen-bench --dataset FILE --responses FILE --output DIR [judge.key=value …]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_lwz.cli import common, evaluate_judge
from megatron_lwz.cli.evaluate_results import output_folder, show_estimates, warn, write_json, write_rows
from megatron_lwz.evaluation import longgen_bench
from megatron_lwz.evaluation import longgen_files as files
from megatron_lwz.evaluation.compare import judge_name
from megatron_lwz.evaluation.longgen_bench import LABELS, LongGenReport, Verdicts
from megatron_lwz.evaluation.longgen_files import Document, Written
from megatron_lwz.report.chapter_curve import curve_sections
from megatron_lwz.report.evaluation import estimates_table, write_page

SAMPLING = {"temperature": 0.95, "top_p": 0.95, "max_tokens": 50}
"""Sampling settings of the judge in the public eval.py."""


def main(argv: Sequence[str]) -> None:
    """Judges responses, or takes the verdicts of their file, and writes the benchmark's figures. Raises LwzError."""
    options = _parser().parse_intermixed_args(list(argv))
    documents = files.read_documents(options.dataset)
    written = files.read_written(options.responses, documents)
    template = _template(options)
    folder = common.check_folder(options.output, "--output")
    result: dict[str, Any] = {"name": options.name or options.responses.stem, "cut": f"{len(documents)} prompts"}
    verdicts = _verdicts(options, folder, documents, written, template, result)
    found = longgen_bench.summarise(documents, written, verdicts)
    missing = len(documents.keys() - {one.id for one in written})
    if missing:
        warn(f"{missing} of {len(documents)} prompts have no response")
    if found.unjudged:
        warn(f"{found.unjudged} checks are left out: the judge said neither yes nor no")
    _write(folder, result | {"responses": len(written), "missing": missing} | found.as_json(), found)


def _verdicts(
    options: argparse.Namespace,
    folder: Path,
    documents: Mapping[str, Document],
    written: Sequence[Written],
    template: str | None,
    result: dict[str, Any],
) -> Verdicts | None:
    """Returns the verdicts on every response: the judge's, or those of the file; None without either."""
    section = evaluate_judge.section_of(options, folder, SAMPLING)
    if section.url is None:
        kept = [one.verdicts for one in written if one.verdicts is not None]
        if len(kept) < len(written):
            common.console().print("no judge.url: completion and words only", markup=False)
            return None
        result["judge"] = {"model": options.judge or "unknown judge", "wording": "unknown: verdicts of a file"}
        if not options.judge:
            warn("the file does not say who judged; verdicts of different judges do not compare: name it by --judge")
        return kept
    if options.judge:
        raise common.UsageError("--judge names who gave the verdicts of a file; responses are judged by judge.model")
    verdicts, result["judge"] = evaluate_judge.judged(
        section,
        "judged",
        lambda judge, shown: longgen_bench.judge_checks(documents, written, judge, template=template, shown=shown),
    )
    result["judge"]["wording"] = files.check_question("", "", template).version
    return verdicts


def _template(options: argparse.Namespace) -> str | None:
    """Returns the public question, if there is one; None for ours."""
    if options.judge_prompt == "ours":
        return None
    if options.judge_prompt:
        return files.read_template(common.file_path(options.judge_prompt))
    beside = options.dataset.absolute().parent.parent / "Evalution" / "eval.py"  # spelt so in the repository
    return files.read_template(beside) if beside.is_file() else None


def _write(folder: Path, result: Mapping[str, Any], found: LongGenReport) -> None:
    write_json(output_folder(folder) / "longgen_bench.json", result)
    write_rows(folder / "longgen_bench_rows.jsonl", found.rows)
    by = f", judged by {judge_name(result['judge'])} ({result['judge']['wording']})" if "judge" in result else ""
    lead = f"LongGenBench, {result['responses']} responses to {result['cut']}{by}"
    page = folder / "longgen_bench.html"
    sections = {"Scores": estimates_table(found.metrics, LABELS)}
    write_page(page, result["name"], lead, sections | curve_sections(found.curves, "part of the document", LABELS))
    show_estimates(f"{result['name']}: {lead}", found.metrics, LABELS)
    common.console().print(str(page), markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(prog="lwz evaluate longgen-bench", description="LongGenBench, its public files unchanged.")
    parser.add_argument(
        "--dataset", metavar="FILE", type=Path, required=True, help="Dataset_short.json or Dataset_long.json as it is"
    )
    parser.add_argument(
        "--responses",
        metavar="FILE",
        type=Path,
        required=True,
        help="responses to it, or an output file of its scripts",
    )
    parser.add_argument("--judge", metavar="NAME", help="who gave the verdicts that an output file holds")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="where the results go")
    parser.add_argument(
        "--judge-prompt",
        metavar="FILE",
        help="eval.py, or 'ours'; default: the eval.py of the dataset's copy, else ours",
    )
    parser.add_argument("--name", help="of the model, in tables; default: the file's name")
    evaluate_judge.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
