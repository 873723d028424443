"""`--dry-run` of the training stages: whether a step fits, on fake tensors or on the ranks themselves. It writes nothing.

A run without it does not import what it needs.
"""

from __future__ import annotations

import argparse

from megatron_lwz.cli import common, lifetime, option_types
from megatron_lwz.config import Config, Stage, unread_note
from megatron_lwz.data.curriculum import planned
from megatron_lwz.distributed import environment


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--dry-run` and what belongs to it."""
    parser.add_argument(
        "--dry-run",
        choices=("shapes", "device"),
        help="shapes: rehearse the largest step on fake tensors, for every kind of rank; needs no GPU, writes no file; "
        "device: make that step on the ranks that torchrun started, and print the memory that it took",
    )
    parser.add_argument(
        "--gpus",
        metavar="N",
        type=option_types.positive,
        help="with --dry-run shapes: ranks that train (default: torchrun's)",
    )
    parser.add_argument(
        "--gpu", metavar="NAME", help="with --dry-run shapes: the card (docs/planning.md), default h100-80g"
    )


def done(config: Config, stage: Stage, options: argparse.Namespace) -> bool:
    """Makes and prints the dry run that the options ask for. Returns whether they do. Raises LwzError."""
    if options.dry_run != "shapes":
        for name in ("gpus", "gpu"):
            if getattr(options, name) is not None:
                raise common.UsageError(f"--{name}: only with --dry-run shapes")
    if options.dry_run is None:
        return False
    if stage == "grpo":  # on every rank, so that all end with what it refuses
        for line in planned(config):
            common.console().print(line, markup=False)
    if options.dry_run == "device":
        lifetime.import_command("megatron_lwz.cli.dry_run_device").run(config, stage)
    elif environment.rank() == 0:
        tables = lifetime.import_command("megatron_lwz.cli.dry_run_tables")
        tables.run(config, stage, options.gpus or environment.world_size(), options.gpu)
    if (note := unread_note(config, stage)) is not None:
        common.console(stderr=True).print(f"warning: {note}", markup=False)
    return True
