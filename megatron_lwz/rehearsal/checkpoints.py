"""Saving and loading a run's state: what they add to a rank's memory, beside the shard of the state that it holds."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_lwz.rehearsal import disk
from megatron_lwz.rehearsal.device import FakeDevice
from megatron_lwz.rehearsal.ledger import Ledger, RehearsalError
from megatron_lwz.training.checkpoint import load_checkpoint, run_state, state_record
from megatron_lwz.training.checkpoint_sums import STATE_FILE
from megatron_lwz.training.checkpoint_tensors import optimizer_to_read, weights_to_read
from megatron_lwz.training.checkpoint_writer import snapshot_of, write_snapshot
from megatron_lwz.training.state import TrainState


def rehearse_checkpoints(state: TrainState, device: FakeDevice) -> dict[str, Any]:
    """Loads a checkpoint, makes a step, and saves one with a copy and one without, as `checkpoint.asynchronous` says.

    Returns bytes: `shard`, what the rank holds; `written`, its part of a checkpoint; and `added` per phase, to the device
    and to the host.
    """
    disk.install()
    ledger = device.ledger
    added: dict[str, tuple[int, int]] = {}
    held = weights_to_read(state.policies) + optimizer_to_read(state.optimizer, state.policies, ())
    shard = _nbytes(held)
    own = run_state(state, {})
    size = _nbytes([block for blocks in own.tensors.values() for block in blocks])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ledger.during("other ranks"):  # what all of them together would have written of the shard
            files = {STATE_FILE: state_record(state, {}), **own.files}
            write_snapshot(snapshot_of(held, own.common, files), folder / "whole")
        del held
        with _adds(ledger, "load", added):
            load_checkpoint(state, folder / "whole")
        with ledger.during("step"):
            state.optimizer.step()
        with _adds(ledger, "save", added):
            saved = own.independent()
            write_snapshot(saved, folder / "copied")
        if any(block.data.device.type != "cpu" for blocks in saved.tensors.values() for block in blocks):
            raise RehearsalError("a saved state must be in host memory")
        del saved
        with _adds(ledger, "save without a copy", added):
            write_snapshot(own, folder / "in_place")
    return {"shard": shard, "written": size, "files": sorted(own.files), "added": added}


@contextmanager
def _adds(ledger: Ledger, phase: str, added: dict[str, tuple[int, int]]) -> Iterator[None]:
    """Notes how far the block goes above what device and host held before it."""
    before = ledger.bytes, ledger.host_bytes
    with ledger.during(phase):
        yield
    added[phase] = (ledger.peaks[phase] - before[0], ledger.host_peaks[phase] - before[1])


def _nbytes(blocks: Sequence[ShardedTensor]) -> int:
    return sum(math.prod(block.local_shape) * block.dtype.itemsize for block in blocks)
