"""Opening and checking weight folders: every fault is one line that names the tensor or file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megatron_lwz.errors import CheckpointError
from megatron_lwz.models.hf import HfFolder

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TENSORS = {EMBEDDING: torch.arange(12.0).view(4, 3), "model.norm.weight": torch.ones(3)}
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_sharded(folder: Path, weight_map: dict[str, str] | None = None) -> Path:
    files = {EMBEDDING: "a.safetensors", "model.norm.weight": "b.safetensors"}
    for name, file in files.items():
        save_file({name: TENSORS[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map or files}))
    return folder


def fault(folder: Path, shapes: dict[str, tuple[int, ...]] = SHAPES) -> str:
    with pytest.raises(CheckpointError) as caught:
        HfFolder(folder).check(shapes)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


def test_what_was_read_is_no_longer_mapped_and_an_open_folder_stays_what_it_was(tmp_path: Path) -> None:
    folder = HfFolder(save(tmp_path, TENSORS))
    (tmp_path / "newer").mkdir()
    save(tmp_path / "newer", {name: tensor + 1 for name, tensor in TENSORS.items()})
    (tmp_path / "newer" / "model.safetensors").replace(tmp_path / "model.safetensors")
    read = {name: folder.read(name, shape) for name, shape in SHAPES.items()}
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    del read
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("store", [lambda folder: save(folder, TENSORS), save_sharded], ids=["single", "sharded"])
def test_reads_whole_tensors_and_slices(tmp_path: Path, store) -> None:
    folder = HfFolder(store(tmp_path))
    folder.check(SHAPES)
    whole = TENSORS[EMBEDDING]
    assert torch.equal(folder.read(EMBEDDING, (4, 3)), whole)
    assert torch.equal(folder.read(EMBEDDING, (4, 3), 0, (1, 3)), whole[1:3])
    assert torch.equal(folder.read(EMBEDDING, (4, 3), 1, (1, 3)), whole[:, 1:3])
    assert folder.read(EMBEDDING, (4, 3), 0, (4, 4)).shape == (0, 3)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    save(tmp_path, {EMBEDDING: TENSORS[EMBEDDING]})
    assert "tensor model.norm.weight is missing" in fault(tmp_path)


def test_extra_tensor_is_named(tmp_path: Path) -> None:
    save(tmp_path, TENSORS | {"model.layers.7.bias": torch.ones(1)})
    assert "tensor model.layers.7.bias is not part of the model" in fault(tmp_path)


def test_wrong_shape_is_named(tmp_path: Path) -> None:
    save(tmp_path, TENSORS | {"model.norm.weight": torch.ones(5)})
    assert "model.norm.weight has shape [5], config.json asks for [3]" in fault(tmp_path)


def test_wrong_type_is_named(tmp_path: Path) -> None:
    save(tmp_path, TENSORS | {"model.norm.weight": torch.ones(3, dtype=torch.int64)})
    assert "model.norm.weight has type I64" in fault(tmp_path)


@pytest.mark.parametrize("kept", [4, 20, -4], ids=["in the length", "in the header", "in the data"])
def test_truncated_file_is_named(tmp_path: Path, kept: int) -> None:
    file = save(tmp_path, TENSORS) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert "file model.safetensors is damaged or truncated" in fault(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    (save_sharded(tmp_path) / "b.safetensors").unlink()
    assert "file b.safetensors is missing" in fault(tmp_path)


def test_index_that_disagrees_with_the_files_is_named(tmp_path: Path) -> None:
    save_sharded(tmp_path, {EMBEDDING: "b.safetensors", "model.norm.weight": "b.safetensors"})
    assert f"tensor {EMBEDDING} is missing from b.safetensors" in fault(tmp_path)
    save_sharded(tmp_path, {EMBEDDING: "a.safetensors"})
    HfFolder(tmp_path)  # files that the index does not name are read by nobody
    assert "tensor model.norm.weight is missing" in fault(tmp_path)


def test_weights_of_which_readers_would_take_different_ones_are_refused(tmp_path: Path) -> None:
    save_sharded(save(tmp_path, TENSORS))
    message = fault(tmp_path)
    assert (
        "holds model.safetensors, which transformers reads, and model.safetensors.index.json of a.safetensors"
        in message
    )
    assert "delete" in message
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "holds a.safetensors beside model.safetensors" in fault(tmp_path)
    for shard in ("a.safetensors", "b.safetensors"):
        (tmp_path / shard).unlink()
    HfFolder(tmp_path).check(SHAPES)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter_config.json: merge the adapter" in fault(tmp_path)


def test_an_index_of_the_single_file_says_nothing_else(tmp_path: Path) -> None:
    index = {"weight_map": dict.fromkeys(TENSORS, "model.safetensors")}
    (save(tmp_path, TENSORS) / "model.safetensors.index.json").write_text(
        "\ufeff" + json.dumps(index), encoding="utf-8"
    )
    HfFolder(tmp_path).check(SHAPES)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.float64])
def test_other_types_are_named(tmp_path: Path, dtype: torch.dtype) -> None:
    save(tmp_path, TENSORS | {"model.norm.weight": torch.ones(3).to(dtype)})
    assert "tensor model.norm.weight has type" in fault(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {}}', "\xff"])
def test_broken_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in fault(tmp_path)


def test_index_cannot_point_outside_the_folder(tmp_path: Path) -> None:
    save_sharded(tmp_path, {EMBEDDING: "../secret.safetensors"})
    assert "only files in the folder itself" in fault(tmp_path)


def test_pickled_weights_are_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    message = fault(tmp_path)
    assert "pytorch_model.bin is a pickle" in message and "safetensors" in message


def test_empty_and_absent_folders(tmp_path: Path) -> None:
    assert "neither model.safetensors nor" in fault(tmp_path)
    assert "no such folder" in fault(tmp_path / "nowhere")


def test_head_of_a_tied_model_is_accepted_only_as_a_true_copy(tmp_path: Path) -> None:
    save(tmp_path, TENSORS | {HEAD: TENSORS[EMBEDDING].clone()})
    HfFolder(tmp_path).check(SHAPES)
    save(tmp_path, TENSORS | {HEAD: TENSORS[EMBEDDING] + 1})
    assert f"{HEAD} differs from {EMBEDDING}" in fault(tmp_path)
