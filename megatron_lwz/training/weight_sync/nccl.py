"""Weight sync from GPU to GPU: rank 0 broadcasts to every GPU of the vLLM engines, in bounded buckets.

The engines receive through vLLM's own HTTP routes for weight transfer. The tensors, their names and their order are
those of an exported Hugging Face folder, but they are never written to disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from megatron_lwz.config.sections import WeightSyncSection
from megatron_lwz.distributed import exchange, platform
from megatron_lwz.distributed.nccl import NcclLibrary
from megatron_lwz.errors import ConfigError, LwzError
from megatron_lwz.models.hf.export import stream_policy
from megatron_lwz.models.hf.name_map import tensor_shapes, unwrap
from megatron_lwz.orchestrator.protocol import EngineControl
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.training.weight_sync.buckets import Buckets
from megatron_lwz.training.weight_sync.channel import Joining, NcclJoining
from megatron_lwz.training.weight_sync.disk import DiskTransport
from megatron_lwz.training.weight_sync.sender import Sender
from megatron_lwz.types import WeightVersion
from megatron_lwz.units import MIB

Stream = Iterator[tuple[str, Tensor | None]]


class NcclTransport:
    """Broadcasts the weights to the engines. Every rank takes part in `prepare` and `push`.

    `engines` is given on rank 0 only. `disk` writes the folders that other readers than the engines ask for. `joining`
    forms the group of rank 0 and the engines.
    """

    def __init__(
        self,
        engines: EngineControl | None,
        disk: DiskTransport,
        *,
        chunks: Sequence[torch.nn.Module],
        section: WeightSyncSection,
        joining: Joining,
    ) -> None:
        self._engines = engines
        self._disk = disk
        self._chunks = chunks
        self._sender = Sender(section, joining) if engines is not None else None
        self._dtype = next(chunks[0].parameters()).dtype
        shapes = tensor_shapes(unwrap(chunks[0]).arch)
        self._buckets = Buckets(shapes, self._dtype, section.bucket_mib * MIB)

    def folder(self, version: WeightVersion) -> Path:
        """Returns the folder of a version that was prepared with a folder."""
        return self._disk.folder(version)

    def prepare(self, version: WeightVersion, *, folder: bool = False) -> WeightVersion:
        """Writes the folder if one is asked for, and then returns the version with its checksum.

        Otherwise does nothing.
        """
        return self._disk.prepare(version) if folder else replace(version, checksum="")

    def push(self, version: WeightVersion) -> None:
        """Sends the current policy. Raises LwzError, on every rank alike, when any engine of the group fails."""
        device = next(self._chunks[0].parameters()).device
        stream = stream_policy(self._chunks, self._dtype, device=device)
        if self._engines is not None and self._sender is not None:
            failure = self._push(self._engines, self._sender, stream, version, device)
        else:
            failure = exchange.broadcast_json()
            if failure is None:
                _exhaust(stream)  # this rank's share of the work
                failure = exchange.broadcast_json()
        if failure:
            raise LwzError(failure)

    def verify(self, version: WeightVersion) -> None:
        """Does nothing: an engine that missed a byte does not answer, and vLLM computes a different checksum."""

    def close(self) -> None:
        """Leaves the group."""
        if self._sender is not None:
            self._sender.close()

    def _push(
        self, engines: EngineControl, sender: Sender, stream: Stream, version: WeightVersion, device: torch.device
    ) -> str | None:
        """Runs rank 0's part; returns the error text, or "" or None.

        All ranks receive it as JSON before they stream (None: stream the tensors), and again afterwards. When no engine
        answers, nothing is sent; the engines get the next update.
        """
        began, failure = False, None

        def send(clients: Sequence[EngineClient]) -> None:
            nonlocal began
            sender.begin(clients, self._buckets)
            began = True
            exchange.broadcast_json(None)
            sender.send(self._buckets.pack(stream, device), version)

        try:
            engines.push_together(version, send)
        except LwzError as error:
            failure = str(error)
        if began:
            _exhaust(stream)  # the other ranks send their tensors in any case
        return exchange.broadcast_json(failure if began else failure or "")


def nccl_joining(section: WeightSyncSection) -> Joining:
    """Returns the NCCL joining on this rank's GPU.

    Raises ConfigError without a GPU, EnvironmentSetupError without the library.
    """
    if not platform.has_gpu():
        raise ConfigError("weight_sync.transport", "nccl", "needs a GPU on rank 0; use disk")
    return NcclJoining(NcclLibrary(section.library), torch.device("cuda", torch.cuda.current_device()))


def _exhaust(stream: Stream) -> None:
    for _ in stream:
        pass
