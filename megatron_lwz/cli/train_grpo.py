"""`torchrun --nproc-per-node N -m megatron_lwz.cli.train_grpo CONFIG [section.key=value …]`: the main job."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from megatron_lwz.cli import common, train_options
from megatron_lwz.cli.progress import RunProgress
from megatron_lwz.cli.results import show_results
from megatron_lwz.distributed import groups, launch
from megatron_lwz.report.build import build_report
from megatron_lwz.rollout.progress import Progress
from megatron_lwz.training.grpo import train

SHOWN = (
    "reward/length",
    "reward/format",
    "reward/writing",
    "length_in_range",
    "format_valid",
    "rollout/mean_length",
    "kl",
)
"""The metrics on the progress line."""


class ConsoleDisplay:
    """Shows the run's progress on the console of rank 0."""

    def __init__(self, bar: RunProgress) -> None:
        self._bar = bar

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar and shows the step's main metrics."""
        self._bar(step, {name.rpartition("/")[2]: metrics[name] for name in SHOWN if name in metrics})

    def phase(self, name: str) -> None:
        """Shows what the present step does from now on."""
        self._bar.phase(name)

    def waiting(self, progress: Progress) -> None:
        """Shows how many rollouts are finished."""
        rate = f"{progress.tokens_per_second:.0f} tok/s"
        self._bar.note(f"rollouts {progress.finished}/{progress.rollouts}  {progress.tokens:,} tokens  {rate}")


def main(argv: Sequence[str]) -> None:
    """Trains, then writes the report. Raises LwzError."""
    start = train_options.load(argv, "grpo")
    if start is None:
        return
    config, profiler = start.config, start.profiler
    try:
        profiler.check(config.training.steps)
        with profiler, RunProgress("grpo", config.training.steps, config.logging.progress) as bar:
            run = train(config, ConsoleDisplay(bar), profiler)
        if groups.is_rank_zero():
            report = run.report if run.finished and run.report.exists() else build_report(run.root)
            show_results(run.root)
            common.console().print(f"report: {report}", markup=False)
    finally:
        launch.shutdown()


if __name__ == "__main__":
    sys.exit(common.run(main, advice=f"{common.GOES_ON}, its rollouts from their last token"))
