"""`torchrun --nproc-per-node N -m megatron_lwz.cli.train_sft CONFIG [section.key=value …]`: fine-tuning on instruction rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from megatron_lwz.cli import common, train_options
from megatron_lwz.cli.progress import RunProgress
from megatron_lwz.distributed import launch
from megatron_lwz.training import sft


def main(argv: Sequence[str]) -> None:
    """Fine-tunes as CONFIG says. Plain `python -m` runs it on one rank."""
    start = train_options.load(argv, "sft")
    if start is None:
        return
    config, profiler = start.config, start.profiler
    try:
        config, source = sft.prepare(config)
        profiler.check(config.training.steps)
        with profiler, RunProgress("sft", config.training.steps, config.logging.progress) as progress:
            sft.train(config, source, progress, profiler)
    finally:
        launch.shutdown()


if __name__ == "__main__":
    sys.exit(common.run(main, advice=common.GOES_ON))
