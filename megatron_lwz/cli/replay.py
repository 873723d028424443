"""`lwz replay RUN --step N [--output DIR] [section.key=value …]`: computes one step of a GRPO run again and compares.

A run on several ranks is replayed on as many: `torchrun --nproc-per-node N -m megatron_lwz.cli.replay RUN --step N`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from megatron_lwz.cli import common, option_types
from megatron_lwz.config import load_config
from megatron_lwz.distributed import launch
from megatron_lwz.errors import DataError
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.replay import Replayed, replay

COMPARED = ("loss", "grad_norm", "entropy", "kl", "mismatch/difference")
SHOWN = 10
"""Number of rollouts in the table."""


def main(argv: Sequence[str]) -> None:
    """Prints loss and gradient norm beside those of the run, and the worst rollouts. Raises LwzError."""
    parser = common.Parser(
        prog="lwz replay",
        description="One step of a GRPO run, computed again from the checkpoint before it and the journal. Reads only.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder: it holds config.yaml and journal.sqlite")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings that win over the run's")
    parser.add_argument("--step", metavar="N", type=option_types.positive, required=True, help="the step, from 1")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="write the step's batch and findings into this folder"
    )
    options = parser.parse_intermixed_args(list(argv))
    run = RunPaths(options.run)
    if not run.journal.is_file():
        raise DataError(options.run, f"holds no {run.journal.name}: name the folder of a GRPO run")
    _check_output(options.output, options.run)
    config = load_config(options.run, options.overrides)
    try:
        replayed = replay(config, run, options.step, options.output)
    finally:
        launch.shutdown()
    _show(replayed)
    if options.output is not None:
        common.console().print(str(options.output), markup=False)


def _check_output(folder: Path | None, run: Path) -> None:
    if folder is None:
        return
    if folder.resolve().is_relative_to(run.resolve()):
        raise common.UsageError(f"--output {folder}: lies in the run, which stays as it is: name another folder")
    common.check_folder(folder, "--output")


def _show(replayed: Replayed) -> None:
    out = common.console()
    start = f"the checkpoint of step {replayed.begun}" if replayed.begun else "the first weights"
    out.print(f"step {replayed.step}, from {start}", markup=False)
    for name in COMPARED:
        mine = replayed.metrics[name]
        verdict = {True: "the same", False: "", None: "the run recorded none"}[replayed.same(name)]
        verdict = verdict or f"the run had {replayed.recorded[name]!r}: not the same"
        out.print(f"  {name} {mine!r}: {verdict}", markup=False)
    table = Table(title="rollouts that weigh most", title_justify="left")
    for head in ("rollout", "share of the loss", "tokens", "mismatch", "largest"):
        table.add_column(head, justify="left" if head == "rollout" else "right")
    for share in sorted(replayed.shares, key=lambda share: share.badness(), reverse=True)[:SHOWN]:
        cells = (f"{value:.4g}" for value in (share.loss, share.tokens, share.mismatch, share.largest))
        table.add_row(share.rollout, *cells)
    out.print(table)


if __name__ == "__main__":
    sys.exit(common.run(main))
