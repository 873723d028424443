"""Plain data from one rank to all (tensors and JSON, never pickles), and waiting outside collectives."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_lwz.distributed import heartbeat
from megatron_lwz.errors import LwzError, refused_path
from megatron_lwz.units import MIB

_POLL_SECONDS = 0.05
PIECE_BYTES = 64 * MIB
"""Upper bound of one broadcast. It keeps a backend's own buffers small, however long the rollouts are."""


def broadcast_json(value: Any = None, *, source: int = 0, group: dist.ProcessGroup | None = None) -> Any:
    """Returns the value of rank `source` on every rank (of a group on CPUs, if given).

    The value must survive a round trip through JSON. The argument of the other ranks is not read.
    """
    mine = dist.get_rank() == source
    content = json.dumps(value).encode() if mine else b""
    length = torch.tensor([len(content)], dtype=torch.int64)
    dist.broadcast(length, src=source, group=group)
    data = torch.empty(int(length), dtype=torch.uint8)
    if mine:
        data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    dist.broadcast(data, src=source, group=group)
    return json.loads(data.numpy().tobytes())


def from_rank_zero(work: Callable[[], Any]) -> Any:
    """Returns on every rank the JSON value that `work` returns on rank 0, which alone calls it.

    Raises on every rank the LwzError that it raises there; so too for a path that the system refuses.
    """
    value, failed = None, None
    if dist.get_rank() == 0:
        try:
            value = work()
        except LwzError as error:
            failed = error
        except OSError as error:
            if (failed := refused_path(error)) is None:
                raise
    said, value = broadcast_json((failed and str(failed), value))
    if said is not None:
        raise failed or LwzError(said)
    return value


def first_said(text: str | None) -> str | None:
    """Returns on every rank a text that some rank gives (of the highest such rank), None if none does. Collective."""
    speaker = int(largest(dist.get_rank() if text is not None else -1))
    return None if speaker < 0 else str(broadcast_json(text, source=speaker))


def broadcast_tensors(tensors: dict[str, Tensor] | None = None, *, source: int = 0) -> dict[str, Tensor]:
    """Returns the CPU tensors of rank `source` on every rank.

    Names, dtypes and shapes are sent as JSON, then the bytes, in pieces of at most PIECE_BYTES.
    """
    mine = dist.get_rank() == source
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()} if mine else {}
    header = broadcast_json(
        {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in held.items()}, source=source
    )
    received: dict[str, Tensor] = {}
    for name, (dtype, shape) in header.items():
        tensor = held[name] if mine else torch.empty(shape, dtype=getattr(torch, dtype))
        data = tensor.reshape(-1).view(torch.uint8)  # as bytes: gloo does not know every dtype
        for start in range(0, data.numel(), PIECE_BYTES):
            dist.broadcast(data[start : start + PIECE_BYTES], src=source)
        received[name] = tensor
    return received


def largest(value: float) -> float:
    """Returns the largest of all ranks' values, on every rank."""
    held = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(held, op=dist.ReduceOp.MAX)
    return float(held)


def post(key: str) -> None:
    """Marks `key` as reached in the rendezvous store. Use each key only once in a run, for example `batch/17`."""
    _store().set(key, "posted")


def posted(key: str) -> bool:
    """Returns whether some rank has posted `key`."""
    return bool(_store().check([key]))


def wait_until_posted(key: str, timeout: float, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Sleeps until some rank posts `key`. `meanwhile` is called several times per second.

    It enters no collective, so no watchdog timeout runs while the ranks wait for rollouts. Raises TimeoutError after
    `timeout` seconds.
    """
    end = time.monotonic() + timeout
    with heartbeat.waiting(key):
        while not posted(key):
            meanwhile()
            if time.monotonic() > end:
                raise TimeoutError(f"no rank posted {key!r} within {timeout:g} s")
            time.sleep(_POLL_SECONDS)


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()
