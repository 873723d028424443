"""The check that a checkpoint belongs to the model that it is loaded into.

Shapes alone do not show it: with another rope_theta or another number of heads the same tensors are another function.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from megatron_lwz.config import Architecture, load_config
from megatron_lwz.distributed import exchange
from megatron_lwz.errors import CheckpointError, LwzError
from megatron_lwz.reading import read_object
from megatron_lwz.run_paths import with_config
from megatron_lwz.training.checkpoint_sums import STATE_FILE

log = logging.getLogger(__name__)


def check_same_model(arch: Architecture, folder: Path) -> None:
    """Raises CheckpointError, on every rank alike, if the checkpoint's architecture computes another function.

    Collective. A checkpoint that does not say its architecture is accepted with a warning.
    """
    exchange.from_rank_zero(lambda: _check(arch, folder))


def _check(arch: Architecture, folder: Path) -> None:
    saved = _architecture_of(folder)
    if saved is None:
        log.warning("%s does not say which model it is: only the shapes of its tensors are compared", folder)
        return
    found = arch.difference(saved)
    if found is not None:
        name, ours, theirs = found
        advice = f"{name} is {theirs} there, {ours} in this config: use the model of the checkpoint"
        raise CheckpointError(folder, f"is another model's: {advice}")


def _architecture_of(folder: Path) -> Architecture | None:
    """Returns the architecture that a checkpoint names itself, or that of the config.yaml beside it or of its run."""
    if (folder / STATE_FILE).is_file():
        record = read_object(folder / STATE_FILE).get("architecture")
        if isinstance(record, dict):
            try:
                return Architecture.model_validate(record)
            except ValidationError as error:
                raise CheckpointError(folder, f"{STATE_FILE} is damaged: its 'architecture' is none") from error
    if (place := with_config(folder)) is None:
        return None
    try:
        return load_config(place).architecture()
    except LwzError as error:  # the run's model folder may have moved since
        log.warning("%s: its model is unknown (%s)", folder, error)
        return None
