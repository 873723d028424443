"""`--dry-run shapes` of the training stages: whether a step fits, without a GPU, and without writing anything.

A run without it does not import what it needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_lwz.cli import common, lifetime, option_types
from megatron_lwz.config import Config, Stage
from megatron_lwz.distributed import environment


def load(argv: Sequence[str], stage: Stage) -> Config | None:
    """Returns the config of a stage's command line; None after a dry run, which has then been printed.

    Raises LwzError, DoesNotFit among them.
    """
    parser = common.parser()
    parser.add_argument(
        "--dry-run",
        choices=("shapes",),
        help="shapes: rehearse the largest step on fake tensors, for every kind of rank; needs no GPU, writes no file",
    )
    parser.add_argument(
        "--gpus", metavar="N", type=option_types.positive, help="with --dry-run: ranks that train (default: torchrun's)"
    )
    parser.add_argument("--gpu", metavar="NAME", help="with --dry-run: the card (docs/planning.md), default h100-80g")
    config, options = common.parse(parser, argv)
    if options.dry_run is None:
        for name in ("gpus", "gpu"):
            if getattr(options, name) is not None:
                raise common.UsageError(f"--{name}: only with --dry-run")
        return config
    if environment.rank() == 0:
        tables = lifetime.import_command("megatron_lwz.cli.dry_run_tables")
        tables.run(config, stage, options.gpus or environment.world_size(), options.gpu)
    return None
