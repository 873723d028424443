"""`torchrun --nproc-per-node N -m megatron_lwz.cli.train_dpo CONFIG [section.key=value …]`.

Direct preference optimisation of a policy on pairs of replies.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from megatron_lwz.cli import common, train_options
from megatron_lwz.cli.progress import RunProgress
from megatron_lwz.cli.train_reward_model import show_held_out
from megatron_lwz.distributed import groups, launch
from megatron_lwz.report.reward_model import POLICY, build_reward_report
from megatron_lwz.training import dpo, pairs


def main(argv: Sequence[str]) -> None:
    """Trains as CONFIG says, then writes the report. Plain `python -m` runs it on one rank."""
    start = train_options.load(argv, "dpo")
    if start is None:
        return
    config, profiler = start.config, start.profiler
    try:
        config, task = dpo.prepare(config)
        profiler.check(config.training.steps)
        with profiler, RunProgress("dpo", config.training.steps, config.logging.progress) as progress:
            run = pairs.train("dpo", config, task, progress, profiler)
        if groups.is_rank_zero():
            report = run.report if run.finished and run.report.exists() else build_reward_report(run.root, POLICY)
            show_held_out(run.root)
            common.console().print(f"report: {report}", markup=False)
    finally:
        launch.shutdown()


if __name__ == "__main__":
    sys.exit(common.run(main, advice=common.GOES_ON))
