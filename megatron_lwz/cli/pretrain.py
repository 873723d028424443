"""`torchrun --nproc-per-node N -m megatron_lwz.cli.pretrain CONFIG [section.key=value …]`: continual pretraining."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from megatron_lwz.cli import common, train_options
from megatron_lwz.cli.progress import RunProgress
from megatron_lwz.distributed import launch
from megatron_lwz.training.pretrain import pretrain


def main(argv: Sequence[str]) -> None:
    """Pretrains as CONFIG says. Plain `python -m` runs it on one rank."""
    start = train_options.load(argv, "pretrain")
    if start is None:
        return
    config, profiler = start.config, start.profiler
    try:
        profiler.check(config.training.steps)
        with profiler, RunProgress("pretrain", config.training.steps, config.logging.progress) as progress:
            pretrain(config, progress, profiler)
    finally:
        launch.shutdown()


if __name__ == "__main__":
    sys.exit(common.run(main, advice=common.GOES_ON))
