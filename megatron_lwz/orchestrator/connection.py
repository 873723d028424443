"""What trainer and rollout process say to each other: JSON objects with CPU tensors, over a socket pair. No pickles."""

from __future__ import annotations

import json
import math
import socket
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from megatron_lwz import errors
from megatron_lwz.errors import LwzError

HEADER = Struct("<Q")
"""Bytes of the JSON that follows; the tensors' bytes follow that."""


@dataclass(frozen=True)
class Message:
    """One thing said. `tensors` belong to `content`."""

    content: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Connection:
    """One end. `send` may be called from any thread, `receive` from one."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._sending = threading.Lock()

    def send(self, content: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Raises OSError when nobody listens any more."""
        held = {name: tensor.contiguous() for name, tensor in (tensors or {}).items()}
        shapes = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in held.items()}
        said = json.dumps({"content": dict(content), "tensors": shapes}).encode()
        with self._sending:
            self._end.sendall(HEADER.pack(len(said)) + said)
            for tensor in held.values():
                self._end.sendall(tensor.numpy().data.cast("B") if tensor.numel() else b"")

    def receive(self) -> Message:
        """Waits for the next message. Raises EOFError at the other end's end."""
        (size,) = HEADER.unpack(self._read(HEADER.size))
        said = json.loads(self._read(size))
        tensors = {}
        for name, (dtype_name, shape) in said["tensors"].items():
            dtype = getattr(torch, dtype_name)
            data = self._read(math.prod(shape) * dtype.itemsize)
            tensors[name] = (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).view(shape)
        return Message(said["content"], tensors)

    def close(self) -> None:
        """Lets the other end know that this one is gone."""
        self._end.close()

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            try:
                count = self._end.recv_into(rest)
            except OSError as error:
                raise EOFError from error
            if not count:
                raise EOFError
            rest = rest[count:]
        return data


def describe_error(error: LwzError) -> list[str]:
    """Its kind, as `errors` knows it, its text, and where it was raised."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__]
    return [kinds[0], str(error), "".join(traceback.format_exception(error))]


def error_from(described: list[str]) -> LwzError:
    """The error that `describe_error` described; `--traceback` shows where it was raised, too."""
    kind, text, stack = described
    error: LwzError = (found := getattr(errors, kind)).__new__(found)
    error.args = (text,)
    error.add_note(f"In the rollout process:\n{stack}")
    return error
