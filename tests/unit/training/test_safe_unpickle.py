"""What a checkpoint's metadata may name, and that nothing else is called."""

from __future__ import annotations

import importlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_lwz.training.safe_unpickle import restricted, restricted_load


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.recipe = function, arguments

    def __reduce__(self) -> Any:
        return self.recipe


def metadata() -> Metadata:
    properties = TensorProperties(dtype=torch.bfloat16)
    chunk = ChunkStorageMetadata(offsets=torch.Size([0, 2]), sizes=torch.Size([4, 2]))
    return Metadata(
        state_dict_metadata={"weight": TensorStorageMetadata(properties, torch.Size([4, 4]), [chunk])},
        storage_data={MetadataIndex("weight", [0, 2]): filesystem._StorageInfo("__0_0.distcp", 0, 10)},
        storage_meta=StorageMeta(checkpoint_id=Path("somewhere")),
    )


def test_metadata_round_trips() -> None:
    assert restricted_load(io.BytesIO(pickle.dumps(metadata()))) == metadata()


@pytest.mark.parametrize(
    "function", [os.system, Path.touch, eval, exec, getattr, torch.load, pickle.loads, Path.unlink]
)
def test_calls_are_refused_before_they_run(tmp_path: Path, function: Any) -> None:
    mark = tmp_path / "mark"
    data = pickle.dumps([metadata(), Call(function, f"touch {mark}")])
    with pytest.raises(pickle.UnpicklingError, match="which no checkpoint of ours contains"):
        restricted_load(io.BytesIO(data))
    assert not mark.exists()


def test_inside_restricted_torch_reads_weights_only_and_afterwards_as_before(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "payload.pt"
    torch.save(Call(Path.touch, mark), path)
    plain = torch.load, filesystem.pickle
    with restricted():
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=False)
        with path.open("wb") as stream:
            pickle.dump(Call(Path.touch, mark), stream)
        with pytest.raises(pickle.UnpicklingError), path.open("rb") as stream:
            filesystem.pickle.load(stream)
    assert not mark.exists()
    assert (torch.load, filesystem.pickle) == plain


def test_the_metadata_of_a_checkpoint_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    """Megatron-Core 0.19 keeps it per path, for the life of the process."""
    module = importlib.import_module("megatron.core.dist_checkpointing.strategies.cached_metadata_filesystem_reader")
    names = []
    for name in ("first", "second"):
        content = Metadata(
            state_dict_metadata={name: metadata().state_dict_metadata["weight"]}, storage_meta=StorageMeta()
        )
        (tmp_path / ".metadata").write_bytes(pickle.dumps(content))
        with restricted():
            names += module.CachedMetadataFileSystemReader(tmp_path).read_metadata().state_dict_metadata
    assert names == ["first", "second"]


def test_enum_members_load_as_early_releases_of_python_3_11_pickle_them():
    member = next(iter(_MEM_FORMAT_ENCODING))
    stored = pickle.dumps(Call(getattr, _MEM_FORMAT_ENCODING, member.name))
    assert restricted_load(io.BytesIO(stored)) is member


@pytest.mark.parametrize(
    "owner, name", [(torch.Size, "__class__"), (Metadata, "__init__"), (_MEM_FORMAT_ENCODING, "mro")]
)
def test_getattr_reaches_nothing_but_enum_members(owner, name):
    with pytest.raises(pickle.UnpicklingError, match="asks for an attribute"):
        restricted_load(io.BytesIO(pickle.dumps(Call(getattr, owner, name))))
