"""Messages between trainer and rollout process: JSON objects with CPU tensors over a socket pair, without pickle.

`Codec` converts values to JSON and back by their declared types. `describe_error` and `error_from` convert errors.
"""

from __future__ import annotations

import json
import math
import socket
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from struct import Struct
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from megatron_lwz import errors
from megatron_lwz.errors import LwzError
from megatron_lwz.types import WeightVersion

HEADER = Struct("<Q")
"""Size in bytes of the JSON that follows. The tensors' bytes follow the JSON."""

Tensors = dict[str, Tensor]
Both = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""A pair of functions: to JSON, and from JSON."""


@dataclass(frozen=True)
class Message:
    """One JSON object, and the tensors that it refers to by name."""

    content: dict[str, Any]
    tensors: Tensors = field(default_factory=dict)


class Connection:
    """One end of the socket pair. `send` may be called from any thread, `receive` from one only."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._sending = threading.Lock()

    def send(self, content: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Sends one message. Raises OSError when the other end is closed."""
        held = {name: tensor.contiguous() for name, tensor in (tensors or {}).items()}
        shapes = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in held.items()}
        said = json.dumps({"content": dict(content), "tensors": shapes}).encode()
        with self._sending:
            self._end.sendall(HEADER.pack(len(said)) + said)
            for tensor in held.values():
                self._end.sendall(tensor.numpy().data.cast("B") if tensor.numel() else b"")

    def receive(self) -> Message:
        """Waits for the next message. Raises EOFError when the other end is closed."""
        (size,) = HEADER.unpack(self._read(HEADER.size))
        said = json.loads(self._read(size))
        tensors = {}
        for name, (dtype_name, shape) in said["tensors"].items():
            dtype = getattr(torch, dtype_name)
            data = self._read(math.prod(shape) * dtype.itemsize)
            tensors[name] = (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).view(shape)
        return Message(said["content"], tensors)

    def close(self) -> None:
        """Closes this end; the other end's `receive` raises EOFError."""
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


class Codec:
    """Converts values to JSON and back by their declared type.

    It supports plain JSON types, paths, weight versions, tensors, dataclasses, and containers of these. `known` adds
    types. Other types raise TypeError.
    """

    def __init__(self, known: Mapping[Any, Both] | None = None) -> None:
        self._known: dict[Any, Both] = {Path: (str, Path), WeightVersion: (str, WeightVersion.parse), **(known or {})}

    def encode(self, value: Any, kind: Any, tensors: Tensors) -> Any:
        """Returns `value` of type `kind` as JSON, and adds its tensors to `tensors`."""

        def add(tensor: Tensor) -> str:
            tensors[name := str(len(tensors))] = tensor
            return name

        return self._convert(value, kind, 0, add)

    def decode(self, coded: Any, kind: Any, tensors: Tensors) -> Any:
        """Returns the value of type `kind` that `encode` converted."""
        return self._convert(coded, kind, 1, tensors.__getitem__)

    def _convert(self, value: Any, kind: Any, way: int, tensor: Callable[[Any], Any]) -> Any:
        """Converts one value to JSON (`way` 0) or from it (1). `tensor` converts between a tensor and its name."""

        def convert(item: Any, item_kind: Any) -> Any:
            return self._convert(item, item_kind, way, tensor)

        origin, arguments = get_origin(kind), get_args(kind)
        if kind in (None, type(None), bool, int, float, str):
            return value
        if kind in self._known:
            return self._known[kind][way](value)
        if kind is Tensor:
            return tensor(value)
        if origin is UnionType and len(arguments) == 2 and type(None) in arguments:
            return None if value is None else convert(value, next(a for a in arguments if a is not type(None)))
        if origin is tuple and Ellipsis not in arguments:
            return tuple(convert(item, item_kind) for item, item_kind in zip(value, arguments, strict=True))
        if isinstance(origin, type) and issubclass(origin, Mapping) and arguments[0] is str:
            return {key: convert(item, arguments[1]) for key, item in value.items()}
        if isinstance(origin, type) and issubclass(list, origin):
            return [convert(item, arguments[0]) for item in value]
        if is_dataclass(kind):
            hints = get_type_hints(kind, localns={"torch": torch})  # types.py itself does not import torch
            read = vars(value).get if way == 0 else value.get
            fields = {name: convert(read(name), hint) for name, hint in hints.items()}
            make: Any = kind
            return fields if way == 0 else make(**fields)
        raise TypeError(f"{kind} cannot be sent to another process")


def describe_error(error: LwzError) -> list[str]:
    """Returns the error's class, as `errors` names it, its text, and its traceback."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__]
    return [kinds[0], str(error), "".join(traceback.format_exception(error))]


def error_from(described: list[str]) -> LwzError:
    """Returns the error that `describe_error` described. `--traceback` also shows where it was raised."""
    kind, text, stack = described
    error: LwzError = (found := getattr(errors, kind)).__new__(found)
    error.args = (text,)
    error.add_note(f"In the rollout process:\n{stack}")
    return error
