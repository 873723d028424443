"""Loads Megatron checkpoints without running code that they contain.

Their `.metadata` file is a pickle, and torch's loader reads it with the plain unpickler. It reads object entries with
`weights_only=False`. Inside `restricted()` the first is limited to a list of known names and the second is refused.
"""

from __future__ import annotations

import enum
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch.distributed.checkpoint import filesystem

from megatron_lwz.distributed import megatron_version

_CHECKPOINT = "torch.distributed.checkpoint"
ALLOWED = frozenset(
    {
        ("pathlib", "PosixPath"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        (f"{_CHECKPOINT}.filesystem", "_StorageInfo"),
        (f"{_CHECKPOINT}.metadata", "BytesStorageMetadata"),
        (f"{_CHECKPOINT}.metadata", "ChunkStorageMetadata"),
        (f"{_CHECKPOINT}.metadata", "Metadata"),
        (f"{_CHECKPOINT}.metadata", "MetadataIndex"),
        (f"{_CHECKPOINT}.metadata", "StorageMeta"),
        (f"{_CHECKPOINT}.metadata", "TensorProperties"),
        (f"{_CHECKPOINT}.metadata", "TensorStorageMetadata"),
        (f"{_CHECKPOINT}.metadata", "_MEM_FORMAT_ENCODING"),
        ("torch", "bfloat16"),
        ("torch", "float16"),
        ("torch", "float32"),
    }
)
"""(module, name) pairs that may occur in `.metadata`: records of shapes, offsets and files."""


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickles only the names in `ALLOWED`. Raises UnpicklingError for any other name, before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns the global if it is allowed.

        `getattr`, by which Python 3.11.0 to 3.11.3 pickle enum members, works for enums only.
        """
        if (module, name) == ("builtins", "getattr"):
            return enum_member
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names '{module}.{name}', which no checkpoint of ours contains")
        return super().find_class(module, name)


def enum_member(*asked: Any) -> enum.Enum:
    """Returns the member of an enum class, given as (class, name).

    Raises UnpicklingError for any other attribute access.
    """
    match asked:
        case (type() as owner, str() as name) if issubclass(owner, enum.Enum) and name in owner.__members__:
            return owner[name]
    raise pickle.UnpicklingError(f"it asks for an attribute ({asked!r}), which no checkpoint of ours contains")


def restricted_load(stream: IO[bytes]) -> Any:
    """`pickle.load` through the RestrictedUnpickler."""
    return RestrictedUnpickler(io.BytesIO(stream.read())).load()


@contextmanager
def restricted() -> Iterator[None]:
    """Inside the block torch's checkpoint reader unpickles restrictedly and every `torch.load` is `weights_only`."""
    megatron_version.forget_checkpoint_metadata()
    plain_pickle, plain_load = filesystem.pickle, torch.load

    def weights_only_load(*args: Any, **options: Any) -> Any:
        return plain_load(*args, **(options | {"weights_only": True}))

    filesystem.pickle = SimpleNamespace(load=restricted_load, dump=pickle.dump)  # type: ignore[assignment]
    torch.load = weights_only_load
    try:
        yield
    finally:
        filesystem.pickle, torch.load = plain_pickle, plain_load
