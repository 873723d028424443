"""Checkpoints in Megatron's distributed format: complete or absent, and readable under another layout.

`<run>/checkpoints/step_00000010/` holds the tensors (`*.distcp`, `.metadata`), each rank's random state, and
`state.json` (step, layout, the kernels that ran, and the stage's own `extra`: data cursor, journal marker).
`<run>/checkpoints/latest` names the newest checkpoint. A folder gets its final name only when everything in it is on
disk. Tensors may be read under any TP × PP × VPP × DP. Random states are restored only when the layout is the same;
otherwise the seeds of the run apply. A run saves through checkpoint_saver.py.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch.distributed import checkpoint as torch_checkpoint

from megatron_lwz.config import Config
from megatron_lwz.distributed import platform
from megatron_lwz.errors import CheckpointError, DataError
from megatron_lwz.evaluation.pinned import unfinished
from megatron_lwz.kernels.settings import settings
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.reading import read_object, read_text
from megatron_lwz.run_paths import BEST, LATEST, RunPaths, step_name
from megatron_lwz.training.checkpoint_tensors import (
    Blocks,
    optimizer_to_read,
    optimizer_to_write,
    weights_to_read,
    weights_to_write,
)
from megatron_lwz.training.checkpoint_writer import Snapshot, snapshot_of, write_snapshot
from megatron_lwz.training.optimizer import adam_step, set_adam_step
from megatron_lwz.training.safe_unpickle import restricted
from megatron_lwz.training.same_model import STATE_FILE, check_same_model
from megatron_lwz.training.state import TrainState

_READ_ERRORS = (
    CheckpointingException,
    torch_checkpoint.CheckpointException,
    pickle.UnpicklingError,
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    EOFError,
)


def run_state(state: TrainState, extra: dict[str, Any]) -> Snapshot:
    """Returns all state that a run needs to resume: this rank's part, as views of the live tensors.

    `extra` is JSON: the state that the stage itself needs (the same on all ranks).
    """
    tensors = weights_to_write(state.policies) + optimizer_to_write(state.optimizer, state.policies)
    files = {_random_file(): _random_state()}
    if dist.get_rank() == 0:
        kernels = settings().backend
        record = {"step": state.step, "layout": _layout(state.config), "kernels": kernels, "extra": extra}
        record["architecture"] = state.config.architecture().model_dump()
        files[STATE_FILE] = json.dumps(record).encode()
    return snapshot_of(tensors, {"optimizer": {"step": adam_step(state.optimizer)}}, files)


def load_checkpoint(state: TrainState, folder: Path) -> dict[str, Any]:
    """Restores weights, optimizer, step and random state from one checkpoint folder; returns its `extra`.

    Collective. Raises CheckpointError for a folder that is missing, is damaged or belongs to another model.
    """
    record = _read_record(folder)
    check_same_model(state.config.architecture(), folder)
    _read(weights_to_read(state.policies), folder)
    # After the weights: in fp32 both are the same memory, and the master is the exact one in a checkpoint of a bf16 run.
    common = _read(optimizer_to_read(state.optimizer, state.policies, _stored_names(folder)), folder)
    set_adam_step(state.optimizer, _saved_adam_step(common["optimizer"]))
    state.step = int(record["step"])
    if record["layout"] == _layout(state.config):
        _load_random_state(folder)
    dist.barrier()
    return record["extra"]


def save_model(policies: Sequence[PolicyModel], folder: Path) -> None:
    """Writes the weights alone as a checkpoint folder that `checkpoint.load` accepts. Collective."""
    write_snapshot(snapshot_of(weights_to_write(policies)), folder)


def load_model(policies: Sequence[PolicyModel], folder: Path) -> None:
    """Loads model chunks from a checkpoint, a run folder (its newest one) or a folder by `save_model`, in any layout.

    Collective. Raises CheckpointError.
    """
    folder = resolve(folder)
    check_same_model(policies[0].arch, folder)
    _read(weights_to_read(policies), folder)


def latest(run_dir: Path) -> Path | None:
    """Returns the newest complete checkpoint of a run folder, None if it has none. Raises DataError."""
    pointer = RunPaths(run_dir).latest
    if not pointer.is_file():
        return None
    return pointer.parent / read_text(pointer).strip()


def pointed_at(checkpoints: Path) -> set[str]:
    """Returns the names of the folders to keep: the latest and the best checkpoint, and those still being evaluated.

    Raises DataError.
    """
    pointers = (checkpoints / name for name in (LATEST, BEST))
    named = {read_text(path).strip() for path in pointers if path.is_file()}
    return named | {step_name(step) for step in unfinished(checkpoints.parent)}


def resolve(folder: Path) -> Path:
    """Returns the folder that holds the tensors: `folder` itself, or the newest checkpoint of a run folder.

    Raises CheckpointError when there is neither.
    """
    found = latest(folder) or folder
    if not (found / "metadata.json").is_file():
        raise CheckpointError(found, "no checkpoint here (no metadata.json): check the path")
    return found


def _read(tensors: Blocks, folder: Path) -> dict[str, Any]:
    """Reads the tensors in place; returns the entries that are not tensors. Collective. Raises CheckpointError."""
    wanted = {str(number): tensor for number, tensor in enumerate(tensors)}
    try:
        with restricted():
            return dist_checkpointing.load({"tensors": wanted}, str(folder), validate_access_integrity=False)
    except _READ_ERRORS as error:
        raise _unreadable(folder, error) from error


def _stored_names(folder: Path) -> frozenset[str]:
    """Returns the names of all tensors in a checkpoint. Raises CheckpointError."""
    try:
        with restricted():
            return frozenset(torch_checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata)
    except _READ_ERRORS as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: BaseException) -> CheckpointError:
    if isinstance(error, torch_checkpoint.CheckpointException):  # carries each failed rank's own error
        error = next(iter(error.failures.values()))[0]
    reason = " ".join(str(error).split())[:300]
    return CheckpointError(folder, f"cannot be read ({type(error).__name__}: {reason})")


def _saved_adam_step(entry: dict[str, Any]) -> int:
    """Returns the number of Adam's updates; entries of Megatron's own forms were written by earlier versions."""
    if "step" in entry:
        return int(entry["step"])
    entry = entry.get("optimizer", entry)
    groups = entry["param_groups"]
    return int(groups[0]["step"] if "step" in groups[0] else entry["state"].get("common_step", 0))


def _read_record(folder: Path) -> dict[str, Any]:
    if not (resolve(folder) / STATE_FILE).is_file():
        raise CheckpointError(folder, "weights only, without optimizer state: name it in checkpoint.load instead")
    try:
        record = read_object(folder / STATE_FILE)
    except DataError as error:
        raise CheckpointError(folder, f"{STATE_FILE} is damaged: {error.advice}") from error
    if missing := [key for key in ("step", "layout", "extra") if key not in record]:
        raise CheckpointError(folder, f"{STATE_FILE} is damaged: it has no '{missing[0]}'")
    return record


def _layout(config: Config) -> dict[str, int]:
    p = config.parallel
    return {
        "ranks": dist.get_world_size(),
        "tensor": p.tensor,
        "pipeline": p.pipeline,
        "context": p.context,
        "virtual_pipeline": p.virtual_pipeline or 1,
    }


def _random_file() -> str:
    return f"random_{dist.get_rank():05d}.safetensors"


def _random_state() -> bytes:
    states = {f"tracker.{name}": state for name, state in get_cuda_rng_tracker().get_states().items()}
    states["cpu"] = torch.get_rng_state()
    if platform.has_gpu():
        states["gpu"] = torch.cuda.get_rng_state()
    return safetensors.torch.save({name: state.clone() for name, state in states.items()})


def _load_random_state(folder: Path) -> None:
    states = safetensors.torch.load_file(folder / _random_file())
    torch.set_rng_state(states.pop("cpu"))
    if platform.has_gpu() and "gpu" in states:
        torch.cuda.set_rng_state(states.pop("gpu"))
    tracker = {name.removeprefix("tracker."): state for name, state in states.items() if name.startswith("tracker.")}
    get_cuda_rng_tracker().set_states(tracker)
