"""`torchrun --nproc-per-node N -m megatron_lwz.cli.train_reward_model CONFIG [section.key=value …]`.

Trains a writing reward model on preference pairs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from megatron_lwz.cli import common, train_options
from megatron_lwz.cli.progress import RunProgress
from megatron_lwz.distributed import groups, launch
from megatron_lwz.report.reward_model import build_reward_report, read_summary
from megatron_lwz.training import pairs, reward_model


def main(argv: Sequence[str]) -> None:
    """Trains as CONFIG says, then writes the report. Plain `python -m` runs it on one rank."""
    start = train_options.load(argv, "reward_model")
    if start is None:
        return
    config, profiler = start.config, start.profiler
    try:
        config, task = reward_model.prepare(config)
        profiler.check(config.training.steps)
        with profiler, RunProgress("reward model", config.training.steps, config.logging.progress) as progress:
            run = pairs.train("reward_model", config, task, progress, profiler)
        if groups.is_rank_zero():
            report = run.report if run.finished and run.report.exists() else build_reward_report(run.root)
            show_held_out(run.root)
            common.console().print(f"report: {report}", markup=False)
    finally:
        launch.shutdown()


def show_held_out(root: Path) -> None:
    """Prints the accuracy on the held-out pairs, by kind, beside that of a rule that only compares lengths."""
    summary = read_summary(root)
    if summary is None:
        return
    table = Table(title=f"{root.name}: held-out pairs", title_justify="left")
    for column in ("", "accuracy", "length alone", "pairs"):
        table.add_column(column, justify="right" if column else "left")
    rows = [("all", summary["accuracy"], summary["length_baseline"])]
    rows += [(kind, share, summary["length_baseline_by_kind"][kind]) for kind, share in summary["by_kind"].items()]
    for name, share, alone in rows:
        table.add_row(name, f"{share['value']:.3f}", f"{alone:.3f}", str(share["count"]))
    common.console().print(table)


if __name__ == "__main__":
    sys.exit(common.run(main, advice=common.GOES_ON))
