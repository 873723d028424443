"""Checkpoints in Megatron's distributed format: complete or absent, and readable under another layout.

`<run>/checkpoints/step_00000010/` holds the tensors (`*.distcp`, `.metadata`), each rank's random state, and
`state.json` (step, layout, the kernels that ran, and the stage's own `extra`: data cursor, journal marker), and
`checksums.json` (checkpoint_sums.py).
`<run>/checkpoints/latest` names the newest checkpoint. A folder gets its final name only when everything in it is on
disk. Tensors may be read under any TP × PP × VPP × DP. Random states are restored only when the layout is the same;
otherwise the seeds of the run apply. A run with LoRA saves its adapter alone. A run saves through checkpoint_saver.py.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch.distributed import checkpoint as torch_checkpoint

from megatron_lwz.config import Config
from megatron_lwz.distributed import exchange, platform
from megatron_lwz.errors import CheckpointError, DamagedCheckpoint, DataError, LwzError
from megatron_lwz.evaluation.pinned import unfinished
from megatron_lwz.kernels.settings import settings
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.reading import read_object, read_text
from megatron_lwz.run_paths import BEST, LATEST, STEPS, RunPaths, step_name
from megatron_lwz.training.checkpoint_sums import STATE_FILE, check_files
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
from megatron_lwz.training.same_model import adapter_record, check_same_base, check_same_model
from megatron_lwz.training.state import TrainState

_PARTS = (".metadata", "metadata.json", "common.pt")
"""Files of every checkpoint, read by every rank on its own."""

Verify = Literal["full", "sizes"]
Value = TypeVar("Value")


def run_state(state: TrainState, extra: dict[str, Any]) -> Snapshot:
    """Returns all state that a run needs to resume: this rank's part, as views of the live tensors.

    `extra` is JSON: the state that the stage itself needs (the same on all ranks).
    """
    tensors = weights_to_write(state.policies) + optimizer_to_write(state.optimizer, state.policies)
    files = {_random_file(): _random_state()}
    if dist.get_rank() == 0:
        files[STATE_FILE] = state_record(state, extra)
    return snapshot_of(tensors, {"optimizer": {"step": adam_step(state.optimizer)}}, files)


def state_record(state: TrainState, extra: dict[str, Any]) -> bytes:
    """Returns what `state.json` holds: all of a checkpoint but tensors and random states, the same on all ranks."""
    kernels = settings().backend
    layout = _layout(state.config)
    record = {"step": state.step, "layout": layout, "kernels": kernels, "extra": extra, "checksums": True}
    record["architecture"] = state.config.architecture().model_dump()
    if (adapter := adapter_record(state.policies)) is not None:
        record["adapter"] = adapter
    return json.dumps(record).encode()


def load_checkpoint(state: TrainState, folder: Path) -> dict[str, Any]:
    """Restores weights, optimizer, step and random state from one checkpoint folder; returns its `extra`.

    `checkpoint.verify` says how its files are checked first. Collective. Raises CheckpointError for a folder that is
    missing or belongs to another model, and DamagedCheckpoint, on every rank alike; the state may then be half restored.
    """
    _check(folder, state.config.checkpoint.verify)
    record = _read_record(folder)
    check_same_model(state.config.architecture(), folder)
    check_same_base(state.policies, folder)
    stored = _stored_names(folder)
    _read(weights_to_read(state.policies), folder)
    # After the weights: in fp32 both are the same memory, and the master is the exact one in a checkpoint of a bf16 run.
    common = _read(optimizer_to_read(state.optimizer, state.policies, stored), folder)
    set_adam_step(state.optimizer, together(folder, "common.pt", lambda: _saved_adam_step(common["optimizer"])))
    state.step = record["step"]
    if record["layout"] == _layout(state.config):
        together(folder, _random_file(), lambda: _load_random_state(folder))
    return record["extra"]


def save_model(policies: Sequence[PolicyModel], folder: Path) -> None:
    """Writes the weights alone as a checkpoint folder that `checkpoint.load` accepts. Collective."""
    write_snapshot(snapshot_of(weights_to_write(policies)), folder)


def load_model(policies: Sequence[PolicyModel], folder: Path, *, verify: Verify = "full") -> None:
    """Loads model chunks from a checkpoint, a run folder (its newest one) or a folder by `save_model`, in any layout.

    Collective. Raises CheckpointError.
    """
    folder = resolve(folder)
    _check(folder, verify)
    check_same_model(policies[0].arch, folder)
    check_same_base(policies, folder)
    _stored_names(folder)
    _read(weights_to_read(policies), folder)


def latest(run_dir: Path) -> Path | None:
    """Returns the newest complete checkpoint of a run folder, None if it has none.

    It is the one that `latest` names. Without that file it is the one of the highest step: a kill came between the two,
    or the file was lost. Raises CheckpointError for a file that names no checkpoint.
    """
    paths = RunPaths(run_dir)
    if not paths.latest.is_file():
        return max((path.parent for path in paths.checkpoints.glob(f"{STEPS}/metadata.json")), default=None)
    try:
        name = read_text(paths.latest).strip()
    except DataError as error:
        raise CheckpointError(paths.latest, f"{error.advice}: {_name_one(paths.checkpoints)}") from error
    if re.fullmatch(STEPS, name) is None:
        raise CheckpointError(paths.latest, f"{name[:40]!r} is no checkpoint's name: {_name_one(paths.checkpoints)}")
    return paths.checkpoints / name


def together(folder: Path, file: str, work: Callable[[], Value]) -> Value:
    """Returns what `work` returns on this rank, which reads `file` of a checkpoint. Collective.

    If it fails on some rank, raises DamagedCheckpoint on every rank alike. `work` must not be collective.
    """
    value: Value | None = None
    fault = None
    try:
        value = work()
    except LwzError as error:
        fault = f"{file} is damaged ({getattr(error, 'advice', error)})"
    except Exception as error:  # bytes that nobody wrote: a decoder may raise anything
        fault = f"{file} cannot be read ({_reason(error)})"
    said = exchange.first_said(fault)
    if said is not None:
        raise DamagedCheckpoint(folder, said)
    return value  # type: ignore[return-value]  # None only if `work` returned it


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


def _name_one(checkpoints: Path) -> str:
    found = ", ".join(sorted(path.name for path in checkpoints.glob(STEPS)))
    return f"write the name of a whole one into it ({found})" if found else "remove it, there is none"


def _check(folder: Path, verify: Verify) -> None:
    there = exchange.from_rank_zero(folder.is_dir)
    if not there:
        raise DamagedCheckpoint(folder, "the folder is missing")
    check_files(folder, contents=verify == "full")


def _read(tensors: Blocks, folder: Path) -> dict[str, Any]:
    """Reads the tensors in place; returns the entries that are not tensors. Collective. Raises DamagedCheckpoint.

    Call it after `_stored_names`: what every rank reads on its own is then readable on all.
    """
    wanted = {str(number): tensor for number, tensor in enumerate(tensors)}
    fault = None
    try:
        with restricted():
            return dist_checkpointing.load({"tensors": wanted}, str(folder), validate_access_integrity=False)
    except torch_checkpoint.CheckpointException as error:  # on every rank; carries each failed rank's own error
        fault = next(iter(error.failures.values()))[0]
    except Exception as error:  # bytes that nobody wrote: a decoder may raise anything
        fault = error
    raise DamagedCheckpoint(folder, f"cannot be read ({_reason(fault)})") from fault


def _stored_names(folder: Path) -> frozenset[str]:
    """Returns the names of all tensors in a checkpoint, once every rank can read all but the tensors. Collective.

    Raises DamagedCheckpoint.
    """

    def read_metadata() -> frozenset[str]:
        return frozenset(torch_checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata)

    def read_common() -> None:
        torch.load(folder / "common.pt", map_location="cpu")

    with restricted():
        together(folder, "metadata.json", lambda: read_object(folder / "metadata.json"))
        together(folder, "common.pt", read_common)
        return together(folder, ".metadata", read_metadata)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    if isinstance(error, pickle.UnpicklingError):
        text = text.partition(". ")[0]  # torch goes on with how to load the file without protection
    return f"{type(error).__name__}: {text}"


def _saved_adam_step(entry: dict[str, Any]) -> int:
    """Returns the number of Adam's updates; entries of Megatron's own forms were written by earlier versions."""
    if "step" in entry:
        return int(entry["step"])
    entry = entry.get("optimizer", entry)
    groups = entry["param_groups"]
    return int(groups[0]["step"] if "step" in groups[0] else entry["state"].get("common_step", 0))


def _read_record(folder: Path) -> dict[str, Any]:
    """Returns the content of STATE_FILE. Collective. Raises CheckpointError."""
    weights_only = exchange.from_rank_zero(lambda: not (folder / STATE_FILE).is_file() and _is_checkpoint(folder))
    if weights_only:
        raise CheckpointError(folder, "weights only, without optimizer state: name it in checkpoint.load instead")
    return together(folder, STATE_FILE, lambda: _checked_record(read_object(folder / STATE_FILE)))


def _is_checkpoint(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _PARTS)


def _checked_record(record: dict[str, Any]) -> dict[str, Any]:
    for key, kind in {"step": int, "layout": dict, "extra": dict}.items():
        if type(record.get(key)) is not kind:
            raise CheckpointError(STATE_FILE, f"'{key}' is {record.get(key, 'missing')!r:.40}")
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
