"""`lwz evaluate text RESPONSES --output DIR`: the evaluation that needs no judge."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_lwz.cli import common
from megatron_lwz.cli.evaluate_results import output_folder, show_estimates, write_json, write_rows
from megatron_lwz.evaluation.measure import LABELS, measure
from megatron_lwz.evaluation.responses import read_responses
from megatron_lwz.evaluation.tasks import read_tasks
from megatron_lwz.report.evaluation import text_sections, write_page


def main(argv: Sequence[str]) -> None:
    """Writes text.json, text_rows.jsonl and text.html. Raises LwzError."""
    parser = common.Parser(prog="lwz evaluate text", description="Measure responses without a judge.")
    parser.add_argument("responses", metavar="RESPONSES", type=Path, help="JSONL rows with `response`")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="where the results go")
    parser.add_argument("--prompts", metavar="FILE", type=Path, help="for rows without their own prompt and length")
    parser.add_argument("--name", help="shown in tables; default: the responses file's name")
    options = parser.parse_args(list(argv))
    tasks = read_tasks(options.prompts) if options.prompts else ()
    found = measure(read_responses(options.responses, tasks))
    folder, name = output_folder(options.output), options.name or options.responses.stem
    write_json(folder / "text.json", {"name": name, "responses": str(options.responses)} | found.as_json())
    write_rows(folder / "text_rows.jsonl", found.rows)
    page = folder / "text.html"
    write_page(page, name, f"{len(found.rows)} responses, measured without a judge", text_sections(found))
    show_estimates(f"{name}: {len(found.rows)} responses", found.metrics, LABELS)
    common.console().print(str(page), markup=False)


if __name__ == "__main__":
    sys.exit(common.run(main))
