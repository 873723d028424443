"""Writes a checkpoint folder: a snapshot of one moment, and its files, which appear together or not at all.

The format is Megatron's (`dist_checkpointing`), but this process writes it. Megatron's own writer starts helper
processes: the first save takes seconds, forks a process that runs threads, and hangs without `psutil` or when the entry
script has no `__main__` guard.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner, mcore_to_pyt_state_dict
from torch.distributed import checkpoint as torch_checkpoint
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from megatron_lwz.errors import CheckpointError
from megatron_lwz.file_sums import FileSum, HashedFile, sum_of_bytes, sum_of_file
from megatron_lwz.run_paths import STEPS
from megatron_lwz.training.checkpoint_sums import SUMS_FILE, sums_content
from megatron_lwz.writing import write_text

_FORMAT = CheckpointingConfig("torch_dist", 1)

Written = tuple[list[WriteResult], dict[str, FileSum]]
"""What a rank has written: blocks, and the sums of its files. torch hands the values of all ranks to `finish`."""


@dataclass(frozen=True)
class Snapshot:
    """The state that this rank has to write, as it was at one moment."""

    tensors: Mapping[str, list[ShardedTensor]]
    """Tensor name → the blocks of it that this rank writes."""
    common: Mapping[str, Any]
    """All entries that are not sharded tensors, the same on all ranks; rank 0 writes them."""
    files: Mapping[str, bytes]
    """Other files of this rank: name → content."""

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(block.data.nbytes for blocks in self.tensors.values() for block in blocks)

    def independent(self) -> Snapshot:
        """Returns a copy in host memory that shares none of it with the run, so training may continue."""
        copies = {
            name: [replace(block, data=block.data.to("cpu", copy=True)) for block in blocks]
            for name, blocks in self.tensors.items()
        }
        return replace(self, tensors=copies)


def snapshot_of(
    tensors: Sequence[ShardedTensor],
    common: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Snapshot:
    """Returns the snapshot of the blocks that this rank writes: views, which must not change until it is written."""
    blocks: dict[str, list[ShardedTensor]] = {}
    for tensor in tensors:
        blocks.setdefault(tensor.key, []).append(tensor)
    return Snapshot(blocks, common or {}, files or {})


def write_snapshot(
    snapshot: Snapshot,
    target: Path,
    *,
    group: dist.ProcessGroup | None = None,
    on_disk: Callable[[], None] = lambda: None,
) -> None:
    """Writes the folder `target`. All ranks of `group` (default: all ranks) call it, each from any one thread.

    Rank 0 calls `on_disk` when the folder has its final name. A failure on any rank, also in `on_disk`, raises
    CheckpointError on every rank.
    """
    writer = _FolderWriter(snapshot, target, on_disk)
    planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
    tensors = mcore_to_pyt_state_dict(dict(snapshot.tensors), False)
    try:
        torch_checkpoint.save(tensors, storage_writer=writer, planner=planner, process_group=group)
    except torch_checkpoint.CheckpointException as error:
        if dist.get_rank() == 0:
            shutil.rmtree(writer.temporary, ignore_errors=True)
        rank, (cause, _) = min(error.failures.items())
        reason = " ".join(str(cause).split())[:300]
        advice = f"cannot be written (rank {rank}: {reason}); mend that, then resume from the one before it"
        raise CheckpointError(target, advice) from error


def half_written(folder: Path) -> list[Path]:
    """Returns the folders in `folder` that a run started to write and did not finish."""
    return sorted(folder.glob(f".{STEPS}.tmp"))


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file and waits until it is on disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_pointer(pointer: Path, name: str) -> None:
    """Makes `latest` or `best` name a checkpoint, whole or not at all."""
    write_text(pointer, name, durable=True)


class _FolderWriter(torch_checkpoint.FileSystemWriter):
    """torch's writer, in a folder with a temporary name that gets its final name when all ranks have written.

    torch calls these methods inside steps that report a failure on one rank to all ranks.
    """

    def __init__(self, snapshot: Snapshot, target: Path, on_disk: Callable[[], None]) -> None:
        self.temporary = target.with_name(f".{target.name}.tmp")
        super().__init__(self.temporary)
        self._snapshot = snapshot
        self._target = target
        self._on_disk = on_disk

    def prepare_local_plan(self, plan: Any) -> Any:
        return plan  # the folder is made below, once

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """Creates the folder, on rank 0, before any rank writes."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: Any, planner: Any) -> Any:
        """Writes the files of this rank, on every rank."""
        try:
            sums = {name: sum_of_bytes(content) for name, content in self._snapshot.files.items()}
            for name, content in self._snapshot.files.items():
                write_durably(self.temporary / name, content)
            future: Future[Written] = Future()
            future.set_result(self._write_tensors(plan, planner, sums))
            return future
        except Exception as error:
            raise OSError(_root_of(error)) from error

    def _write_tensors(self, plan: SavePlan, planner: SavePlanner, sums: dict[str, FileSum]) -> Written:
        """Writes one block after the other, and hashes it meanwhile.

        torch's own `write_data` keeps the copies of all blocks that are views, or lie on a GPU, until the file ends.
        """
        name, results = f"{plan.storage_data.prefix}0.distcp", []
        with (self.temporary / name).open("wb") as plain:
            file = HashedFile(plain)
            for item in plan.items:
                begin = file.tell()
                block = planner.resolve_data(item)
                assert isinstance(block, torch.Tensor), block  # checkpoints of this project hold no object entries
                block = block.detach().cpu()
                if block.untyped_storage().nbytes() != block.nbytes:  # a view: `save` writes all that it is a view of
                    block = block.clone()
                torch.save(block, cast("IO[bytes]", file))
                size = file.tell() - begin
                results.append(WriteResult(item.index, size, _StorageInfo(name, begin, size)))
            file.flush()
            os.fsync(plain.fileno())
        return results, sums | {name: file.sum()}

    def finish(self, metadata: Metadata, results: list[Any]) -> None:
        """Completes the folder and renames it, on rank 0, after all ranks have written."""
        super().finish(metadata, [blocks for blocks, _ in results])
        torch.save(dict(self._snapshot.common), self.temporary / COMMON_STATE_FNAME)
        save_config(_FORMAT, str(self.temporary))
        _synchronise(self.temporary / COMMON_STATE_FNAME)
        sums = {name: found for _, files in results for name, found in files.items()}
        small = [
            path for path in self.temporary.iterdir() if path.name not in sums
        ]  # Megatron's and torch's, made here
        sums |= {path.name: sum_of_file(path) for path in small}
        write_durably(self.temporary / SUMS_FILE, sums_content(sums))
        _synchronise(self.temporary)
        if self._target.exists():  # an earlier attempt at this step; the run went back to an older one
            shutil.rmtree(self._target)
        self.temporary.rename(self._target)
        _synchronise(self._target.parent)
        self._on_disk()


def _root_of(error: BaseException) -> str:
    """Returns the message of the first error: torch's own message about a broken stream hides the system's."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return str(found or f"{type(error).__name__}: {error}")


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
