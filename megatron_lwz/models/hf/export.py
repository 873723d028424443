"""Streams a policy out of its ranks as a Hugging Face folder, and computes checksums that do not depend on the layout.

The ranks with data- and context-parallel rank 0 take part. For each tensor, the tensor-parallel shares are gathered on
the owning pipeline stage, and that stage's first rank sends the tensor to rank 0. So rank 0 holds a few whole tensors
at a time, never the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_lwz.config import Architecture, read_hf_architecture
from megatron_lwz.distributed import exchange, groups, heartbeat
from megatron_lwz.errors import CheckpointError, LwzError
from megatron_lwz.models.hf.checksum import checksum_of, digests_of, joined, write_sums
from megatron_lwz.models.hf.folder import HfFolder
from megatron_lwz.models.hf.name_map import (
    Placement,
    Shape,
    adapter_placements,
    adapter_shapes,
    placements,
    tensor_shapes,
    unwrap,
)
from megatron_lwz.models.hf.target import EXPORT, atomic_folder
from megatron_lwz.models.hf.write import ShardWriter, copy_carried_files, write_config
from megatron_lwz.units import GIB

SHARD_BYTES = 5 * GIB
CPU = torch.device("cpu")
Stream = Iterator[tuple[str, torch.Tensor | None]]


def export_policy(
    chunks: Sequence[torch.nn.Module],
    folder: Path,
    *,
    config_files_from: Path | None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Writes the policy to `folder`; every rank calls it. Returns the checksum of the weights (hex), on every rank.

    Config, generation config and tokenizer files come from `config_files_from`; without a config.json there, one is
    created. `dtype` None keeps the parameters' type (bit-exact). Padding rows are dropped. The folder appears whole or
    not at all; only an earlier export is replaced. Raises LwzError, on every rank alike.
    """
    arch = unwrap(chunks[0]).arch
    dtype = dtype or next(chunks[0].parameters()).dtype
    stream = stream_policy(chunks, dtype)

    def write(temporary: Path) -> str:
        checksum = _write(stream, temporary, arch, dtype, shard_bytes)
        write_config(temporary, arch, dtype, config_files_from)
        if config_files_from is not None:
            copy_carried_files(config_files_from, temporary)
        return checksum

    return write_folder(stream, folder, write, sources=[config_files_from] if config_files_from else [])


def write_folder(
    stream: Stream,
    folder: Path,
    write: Callable[[Path], str],
    *,
    kind: re.Pattern[str] = EXPORT,
    sources: Sequence[Path] = (),
) -> str:
    """Writes a folder whole or not at all: rank 0 by `write`, which takes from `stream`; the others do their share of it.

    Every rank calls it, and gets what `write` returned. `kind` are the names of files that may be replaced. Raises
    LwzError, on every rank alike.
    """
    outcome = None
    if groups.is_rank_zero():
        try:
            with atomic_folder(folder, kind, sources=sources) as temporary:
                outcome = {"checksum": write(temporary)}
        except LwzError as error:
            outcome = {"error": str(error)}
        except OSError as error:
            outcome = {"error": str(CheckpointError(folder, f"cannot be written ({error})"))}
    for _ in stream:  # on other ranks: their share of the work; on rank 0: the rest after a failed write
        pass
    outcome = exchange.broadcast_json(outcome)
    if "error" in outcome:
        raise LwzError(outcome["error"])
    return outcome["checksum"]


def checksum_policy(chunks: Sequence[torch.nn.Module], *, dtype: torch.dtype | None = None, merged: bool = True) -> str:
    """Returns the checksum (hex) of the policy's weights, cast to `dtype` first if given.

    Collective; every rank gets it. `merged`: with their adapters, if they have some; else of the frozen base alone.
    """
    dtype = dtype or next(chunks[0].parameters()).dtype
    stream = stream_policy(chunks, dtype, merged=merged)
    made = checksum_of((name, tensor) for name, tensor in stream if tensor is not None)
    return exchange.broadcast_json(made)  # from rank 0: the other ranks saw no tensor


def checksum_folder(path: Path | str) -> str:
    """Returns the checksum (hex) of an HF folder's weights as stored.

    Raises CheckpointError, ConfigError or DataError.
    """
    folder = HfFolder(path)
    shapes = tensor_shapes(read_hf_architecture(Path(path)))
    folder.check(shapes)
    return checksum_of((name, folder.read(name, shape)) for name, shape in shapes.items())


def stream_policy(
    chunks: Sequence[torch.nn.Module], dtype: torch.dtype, *, device: torch.device = CPU, merged: bool = True
) -> Stream:
    """Yields (HF name, whole tensor on `device`) in the order of `tensor_shapes`. Collective.

    Only rank 0 gets tensors, other ranks None. Ranks that hold replicas yield nothing. `merged`: W + alpha / rank · B A
    of modules with an adapter, computed in fp32 and rounded once to `dtype`; else W.
    """
    arch = unwrap(chunks[0]).arch
    held = {p.name: p if merged else replace(p, update=None) for c in reversed(chunks) for p in placements(c, arch)}
    yield from _stream(held, tensor_shapes(arch), dtype, device)


def stream_adapter(chunks: Sequence[torch.nn.Module], dtype: torch.dtype) -> Stream:
    """Yields the tensors of the policy's adapters in the same way, in the order of `adapter_shapes`."""
    model = unwrap(chunks[0])
    held = {p.name: p for chunk in chunks for p in adapter_placements(chunk, model.arch)}
    yield from _stream(held, adapter_shapes(model.arch, model.lora), dtype, CPU)


def _stream(
    held: Mapping[str, Placement], shapes: Mapping[str, Shape], dtype: torch.dtype, device: torch.device
) -> Stream:
    if groups.data_context_group().rank() != 0:
        return
    tensor_rank, stage = groups.tensor_group().rank(), groups.pipeline_group().rank()
    owners = _owners(held, list(shapes))
    for (name, shape), owner in zip(shapes.items(), owners, strict=True):
        heartbeat.moved()
        whole = _gather(held[name], dtype) if stage == owner else None
        if owner != 0 and whole is not None:
            dist.send(_raw(whole), group=groups.pipeline_group(), group_dst=0)
        if owner != 0 and tensor_rank == 0 and stage == 0:
            whole = torch.empty(shape, dtype=dtype, device=_device(held))
            dist.recv(_raw(whole), group=groups.pipeline_group(), group_src=owner)
        yield name, whole.to(device) if whole is not None and stage == 0 else None


def _owners(held: Mapping[str, Placement], names: Sequence[str]) -> list[int]:
    """Returns the first pipeline stage that holds each tensor (the last stage has a copy of a tied embedding)."""
    group = groups.pipeline_group()
    owners = torch.tensor([group.rank() if name in held else group.size() for name in names], device=_device(held))
    dist.all_reduce(owners, dist.ReduceOp.MIN, group=group)
    return owners.tolist()


def _device(held: Mapping[str, Placement]) -> torch.device:
    return next(iter(held.values())).view.device


def _gather(placement: Placement, dtype: torch.dtype) -> torch.Tensor | None:
    """Returns the whole tensor on the first rank of the tensor-parallel group, without padding; None on the others."""
    share = placement.merged().to(dtype).contiguous()
    group = groups.tensor_group()
    first, split = group.rank() == 0, placement.split
    if split is None:
        return share if first else None
    shares = [share]
    if group.size() > 1:
        shares = [torch.empty_like(share) for _ in range(group.size())] if first else []
        dist.gather(_raw(share), [_raw(s) for s in shares] or None, group=group, group_dst=0)
    if not first:
        return None
    whole = shares[0] if len(shares) == 1 else torch.cat(shares, split)
    return whole.narrow(split, 0, placement.shape[split])


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a view of the same memory as bytes, so that no backend needs to support the dtype."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def _write(
    stream: Stream,
    folder: Path,
    arch: Architecture,
    dtype: torch.dtype,
    shard_bytes: int,
) -> str:
    writer = ShardWriter(folder, tensor_shapes(arch), dtype, shard_bytes)

    def written() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in stream:
            assert tensor is not None
            writer.write(name, tensor)
            yield name, tensor

    try:
        digests = digests_of(written())
    finally:
        writer.close()
    writer.write_index()
    write_sums(folder, digests)
    return joined(digests)
