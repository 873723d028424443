"""`lwz report RUN_DIR`: writes report.html of a run folder, also while the run is still going on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_lwz.cli import common, lifetime


def main(argv: Sequence[str]) -> None:
    """Builds the report and prints its path. Raises LwzError."""
    parser = common.Parser(prog="lwz report", description="Write report.html of a run folder.")
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="a run folder: it holds metrics.jsonl")
    run_dir = parser.parse_args(argv).run_dir
    with lifetime.importing():  # torch with it: a wrong command line is reported without
        from megatron_lwz.report.build import build_report
    path = build_report(run_dir)
    common.console().print(str(path), markup=False)


if __name__ == "__main__":
    sys.exit(common.run(main))
