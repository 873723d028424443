"""Loading Megatron checkpoints without running what they contain.

Their `.metadata` file is a pickle, and torch's loader reads it with the plain unpickler; object entries are read with
`weights_only=False`. Inside `restricted()` the first goes through a list of known names and the second is refused.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch.distributed.checkpoint import filesystem

ALLOWED = frozenset(
    {
        ("collections", "OrderedDict"),
        ("pathlib", "Path"),
        ("pathlib", "PosixPath"),
        ("torch", "Size"),
        ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
        ("torch.distributed.checkpoint.metadata", "BytesStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "Metadata"),
        ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
        ("torch.distributed.checkpoint.metadata", "StorageMeta"),
        ("torch.distributed.checkpoint.metadata", "TensorProperties"),
        ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
        ("torch.serialization", "_get_layout"),
    }
    | {("torch", str(dtype).removeprefix("torch.")) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
)
"""(module, name) pairs that may occur in `.metadata`: records of shapes, offsets and files."""


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickles only what `ALLOWED` names. Raises UnpicklingError for anything else, before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        """The global, if it is allowed."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names '{module}.{name}', which no checkpoint of ours contains")
        return super().find_class(module, name)


def restricted_load(stream: IO[bytes]) -> Any:
    """`pickle.load` through the RestrictedUnpickler."""
    return RestrictedUnpickler(io.BytesIO(stream.read())).load()


@contextmanager
def restricted() -> Iterator[None]:
    """While open, torch's checkpoint reader unpickles restrictedly and every `torch.load` is `weights_only`."""
    plain_pickle, plain_load = filesystem.pickle, torch.load

    def weights_only_load(*args: Any, **options: Any) -> Any:
        return plain_load(*args, **(options | {"weights_only": True}))

    filesystem.pickle = SimpleNamespace(load=restricted_load, dump=pickle.dump)  # type: ignore[assignment]
    torch.load = weights_only_load
    try:
        yield
    finally:
        filesystem.pickle, torch.load = plain_pickle, plain_load
