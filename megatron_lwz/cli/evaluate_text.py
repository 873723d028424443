"""`lwz evaluate text RESPONSES|RUN_DIR --output DIR`: the evaluation that needs no judge."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_lwz.cli import common, option_types
from megatron_lwz.cli.evaluate_results import output_folder, show_estimates, write_json, write_rows
from megatron_lwz.evaluation.journaled import read_run
from megatron_lwz.evaluation.measure import LABELS, measure
from megatron_lwz.evaluation.responses import read_responses
from megatron_lwz.evaluation.tasks import read_tasks
from megatron_lwz.report.evaluation import text_sections, write_page


def main(argv: Sequence[str]) -> None:
    """Writes text.json, text_rows.jsonl and text.html. Raises LwzError."""
    parser = common.Parser(prog="lwz evaluate text", description="Measure responses without a judge.")
    parser.add_argument(
        "responses", metavar="RESPONSES|RUN_DIR", type=Path, help="JSONL rows with `response`, or a run"
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="where the results go")
    parser.add_argument("--prompts", metavar="FILE", type=Path, help="for rows without their own prompt and length")
    parser.add_argument(
        "--step",
        metavar="N",
        type=option_types.not_negative,
        help="of a run: after how many updates; default: the newest",
    )
    parser.add_argument("--name", help="shown in tables; default: the responses file's name")
    options = parser.parse_args(list(argv))
    if options.responses.is_dir():
        responses, source = read_run(options.responses, options.step)
    else:
        tasks = read_tasks(options.prompts) if options.prompts else ()
        responses, source = read_responses(options.responses, tasks), "measured without a judge"
    found = measure(responses)
    folder, name = output_folder(options.output), options.name or options.responses.resolve().stem
    about = {"name": name, "responses": str(options.responses), "source": source}
    write_json(folder / "text.json", about | found.as_json())
    write_rows(folder / "text_rows.jsonl", found.rows)
    page = folder / "text.html"
    write_page(page, name, f"{len(found.rows)} responses, {source}", text_sections(found))
    show_estimates(f"{name}: {len(found.rows)} responses, {source}", found.metrics, LABELS)
    common.console().print(str(page), markup=False)


if __name__ == "__main__":
    sys.exit(common.run(main))
