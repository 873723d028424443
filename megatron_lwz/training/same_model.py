"""The check that a checkpoint belongs to the model that it is loaded into.

Shapes alone do not show it: with another rope_theta or another number of heads the same tensors are another function, and
so is an adapter on another base.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_lwz.config import Architecture, load_config
from megatron_lwz.distributed import exchange
from megatron_lwz.errors import CheckpointError, LwzError
from megatron_lwz.models.hf.export import checksum_policy
from megatron_lwz.models.qwen import DTYPES
from megatron_lwz.reading import read_object
from megatron_lwz.run_paths import with_config
from megatron_lwz.training.checkpoint_sums import STATE_FILE

log = logging.getLogger(__name__)


def check_same_model(arch: Architecture, folder: Path) -> None:
    """Raises CheckpointError, on every rank alike, if the checkpoint's architecture computes another function.

    Collective. A checkpoint that does not say its architecture is accepted with a warning.
    """
    exchange.from_rank_zero(lambda: _check(arch, folder))


def adapter_record(policies: Sequence[Any]) -> dict[str, Any] | None:
    """Returns what a checkpoint of a policy with LoRA says of its adapter, None for a policy without."""
    policy = policies[0]
    if policy.lora is None:
        return None
    return {"lora": policy.lora.model_dump(mode="json"), "base": policy.base, "dtype": _dtype_name(policies)}


def check_same_base(policies: Sequence[Any], folder: Path) -> None:
    """Raises CheckpointError, on every rank alike, unless the checkpoint holds what is trained here: all, or an adapter.

    An adapter must have the same settings and the same frozen base. Collective.
    """
    saved: dict[str, Any] | None = exchange.from_rank_zero(lambda: _adapter_of(folder))
    own = adapter_record(policies)
    if own is None and saved is None:
        return
    if saved is None:
        advice = "with lora.rank name the frozen model in model.hf (lwz convert export writes such a folder)"
        raise CheckpointError(folder, f"holds a whole model, no LoRA adapter: {advice}")
    if own is None:
        advice = "take the config.yaml of its run, or its weights as lwz convert export merges them"
        raise CheckpointError(folder, f"holds a LoRA adapter alone: {advice}")
    for key, value in own["lora"].items():
        if saved["lora"].get(key) != value:
            there = saved["lora"].get(key)
            raise CheckpointError(folder, f"its adapter has lora.{key} {there}, this config {value}: use that one")
    if saved["dtype"] != own["dtype"]:
        own["base"] = checksum_policy(policies, dtype=DTYPES[saved["dtype"]], merged=False)
    if saved["base"] != own["base"]:
        sums = f"checksum {saved['base']} in {saved['dtype']}, that of this config's model is {own['base']}"
        raise CheckpointError(folder, f"its adapter belongs to another base model ({sums}): name that one in model.hf")


def _adapter_of(folder: Path) -> dict[str, Any] | None:
    """Returns the `adapter_record` of a checkpoint, None if it has none. Raises CheckpointError for a damaged one."""
    if not (folder / STATE_FILE).is_file():
        return None
    found = read_object(folder / STATE_FILE).get("adapter")
    if found is None:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("lora"), dict) or found.get("dtype") not in DTYPES:
        raise CheckpointError(folder, f"{STATE_FILE} is damaged: its 'adapter' is none")
    return {"base": None} | found


def _dtype_name(policies: Sequence[Any]) -> str:
    dtype = next(policies[0].parameters()).dtype
    return next(name for name, known in DTYPES.items() if known == dtype)


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
