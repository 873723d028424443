"""`python -m megatron_lwz.cli.evaluate_export CHECKPOINT OUT`: exports a checkpoint as a Hugging Face folder.

It runs on one rank, in a separate process, because it must be a Megatron rank, and the evaluation that calls it must
not be one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_lwz.cli import common
from megatron_lwz.config import load_config
from megatron_lwz.distributed import launch
from megatron_lwz.errors import CheckpointError
from megatron_lwz.models.hf import export_policy
from megatron_lwz.run_paths import with_config
from megatron_lwz.training.initial import saved_policy


def main(argv: Sequence[str]) -> None:
    """Exports a checkpoint, or a run folder's newest one. Raises LwzError."""
    checkpoint, out = Path(argv[0]), Path(argv[1])
    if (found := with_config(checkpoint)) is None:
        raise CheckpointError(checkpoint, "no config.yaml here, nor in a run folder above")
    config = load_config(found)
    config = config.model_copy(update={"parallel": type(config.parallel)()})
    launch.initialize(config)
    try:
        policies = saved_policy(config, checkpoint)
        carried = config.model.tokenizer or config.model.hf
        export_policy(policies, out, config_files_from=Path(carried) if carried else checkpoint)
    finally:
        launch.shutdown()


if __name__ == "__main__":
    sys.exit(common.run(main))
