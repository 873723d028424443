"""The exported folder as the safetensors library and transformers see it."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, Qwen2ForCausalLM

from megatron_lwz.config import Architecture, read_hf_architecture
from megatron_lwz.errors import LwzError
from megatron_lwz.models.hf import HfFolder, RandomInit, checksum_folder
from megatron_lwz.models.hf.checksum import SUMS_FILE, digests_of, joined, write_sums
from megatron_lwz.models.hf.name_map import tensor_shapes
from megatron_lwz.models.hf.write import ShardWriter, copy_carried_files, write_config

ARCH = Architecture(
    num_hidden_layers=2,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=50,
    rope_theta=12345.0,
)


def write_model(folder: Path, *, dtype: torch.dtype = torch.float32, shard_bytes: int = 2**30, seed: int = 1) -> dict:
    shapes = tensor_shapes(ARCH)
    tensors = {name: RandomInit(ARCH, seed).read(name, shape).to(dtype) for name, shape in shapes.items()}
    writer = ShardWriter(folder, shapes, dtype, shard_bytes)
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.close()
    writer.write_index()
    write_config(folder, ARCH, dtype, None)
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_bytes", [2**30, 4000, 1])
def test_shards_hold_the_same_bits_for_the_safetensors_library(tmp_path: Path, dtype, shard_bytes: int) -> None:
    tensors = write_model(tmp_path, dtype=dtype, shard_bytes=shard_bytes)
    read = {}
    for file in tmp_path.glob("*.safetensors"):
        read |= load_file(file)
    assert read.keys() == tensors.keys()
    assert all(read[name].dtype == dtype and torch.equal(read[name], tensors[name]) for name in tensors)
    HfFolder(tmp_path).check(tensor_shapes(ARCH))
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_bytes < 2**30)


def test_transformers_loads_the_made_config_and_every_tensor(tmp_path: Path) -> None:
    tensors = write_model(tmp_path, shard_bytes=4000)
    model, report = Qwen2ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert all(torch.equal(parameter, tensors[name]) for name, parameter in model.named_parameters())
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == ARCH.rope_theta
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["rope_theta"] == ARCH.rope_theta and raw["architectures"] == ["Qwen2ForCausalLM"]
    assert read_hf_architecture(tmp_path) == ARCH.model_copy(update={"head_dim": 4})


def test_source_config_and_tokenizer_files_are_carried_along(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir(), out.mkdir()
    config = {
        "model_type": "qwen2",
        "bos_token_id": 7,
        "eos_token_id": "9",
        "dtype": "bfloat16",
        "max_window_layers": 3,
    }
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer.json").write_text("{}")
    (source / "notes.txt").write_text("stays")
    write_config(out, ARCH, torch.float32, source)
    copy_carried_files(source, out)
    raw = json.loads((out / "config.json").read_text())
    assert raw["bos_token_id"] == 7 and raw["max_window_layers"] == 3 and raw["dtype"] == "float32"
    assert raw["eos_token_id"] == 9, "as a number, which all readers take"
    assert (out / "tokenizer.json").read_text() == "{}" and not (out / "notes.txt").exists()


def test_broken_source_config_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(LwzError, match=r"config\.json"):
        write_config(tmp_path, ARCH, torch.float32, tmp_path)


def test_random_weights_do_not_depend_on_how_they_are_cut() -> None:
    source = RandomInit(ARCH, 3)
    name = "model.layers.1.mlp.down_proj.weight"
    whole = source.read(name, (16, 24))
    assert torch.equal(source.read(name, (16, 24), 1, (12, 24)), whole[:, 12:])
    assert torch.equal(RandomInit(ARCH, 3).read(name, (16, 24)), whole)
    assert not torch.equal(RandomInit(ARCH, 4).read(name, (16, 24)), whole)
    wide = source.read("model.layers.0.mlp.down_proj.weight", (400, 400))
    assert wide.std().item() == pytest.approx(0.02 / 2, rel=0.02)  # √(2 · 2 layers) = 2
    assert source.read("model.norm.weight", (4,)).tolist() == [1, 1, 1, 1]
    assert source.read("model.layers.0.self_attn.q_proj.bias", (2,)).tolist() == [0, 0]


def test_checksum_sees_values_types_and_nothing_else(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c", "d")]
    for folder in folders:
        folder.mkdir()
    write_model(folders[0])
    write_model(folders[1], shard_bytes=4000)
    write_model(folders[2], seed=2)
    write_model(folders[3], dtype=torch.bfloat16)
    first, sharded, other, half = map(checksum_folder, folders)
    assert first == sharded and len({first, other, half}) == 3


def test_every_changed_byte_of_an_export_is_seen_and_its_tensor_and_file_are_named(tmp_path: Path) -> None:
    tensors = write_model(tmp_path, shard_bytes=4000)
    write_sums(tmp_path, digests_of(tensors.items()))
    assert joined(digests_of(tensors.items())) == checksum_folder(tmp_path)
    assert [HfFolder(tmp_path).fault(part, 3) for part in range(3)] == [None] * 3
    for file in sorted(tmp_path.glob("*.safetensors")):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        (said,) = {HfFolder(tmp_path).fault(part, 3) for part in range(3)} - {None}
        assert f" in {file.name} is not as it was written" in said and SUMS_FILE in said
        file.write_bytes(whole)
    assert HfFolder(tmp_path).fault() is None


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"tensors": {}}', b'{"tensors": {"a": "xy"}, "checksum": ""}', b"\xff"]
)
def test_damaged_checksums_of_an_export_are_one_line(tmp_path: Path, content: bytes) -> None:
    write_model(tmp_path)
    assert HfFolder(tmp_path).fault() is None, "a folder of somebody else has none"
    (tmp_path / SUMS_FILE).write_bytes(content)
    with pytest.raises(LwzError) as raised:
        HfFolder(tmp_path).fault()
    assert f"{SUMS_FILE} is damaged" in str(raised.value) and "\n" not in str(raised.value)


def test_flips_in_an_export_are_one_line_or_change_no_tensor(tmp_path: Path) -> None:
    tensors, seen = write_model(tmp_path, shard_bytes=4000), 0
    write_sums(tmp_path, digests_of(tensors.items()))
    files = sorted(path for path in tmp_path.iterdir() if path.name != "config.json")
    for seed in range(90):
        choice, path = random.Random(seed), files[seed % len(files)]
        whole = path.read_bytes()
        data = bytearray(whole)
        data[choice.randrange(min(len(data), 400)) if seed % 2 else choice.randrange(len(data))] ^= choice.randint(
            1, 255
        )
        path.write_bytes(data)
        try:
            folder = HfFolder(tmp_path)
            folder.check(tensor_shapes(ARCH))
            if (said := folder.fault()) is None:
                assert all(torch.equal(folder.read(name, tuple(t.shape)), t) for name, t in tensors.items()), seed
        except LwzError as error:
            said = str(error)
        seen += said is not None
        assert said is None or "\n" not in said, seed
        path.write_bytes(whole)
    assert seen > 60
