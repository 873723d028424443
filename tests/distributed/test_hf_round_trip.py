"""HF folder → any layout → HF folder is bit-exact, and every rank tells the same story about a broken folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForCausalLM

from megatron_lwz.models.hf import checksum_folder
from megatron_lwz.types import WeightVersion
from tests.support import weight_peer
from tests.support.ranks import run_ranks
from tests.support.tiny_qwen2 import QWEN3, tiny_qwen2
from tools import convert_hf

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TWO_RANKS = {
    "dp2": {},
    "tp2": {"tensor": 2},
    "pp2": {"pipeline": 2},
    "vpp2": {"pipeline": 2, "virtual_pipeline": 2},
    "cp2": {"context": 2},
}
FOUR_RANKS = {"tp2_pp2": {"tensor": 2, "pipeline": 2}, "tp2_vpp2": {"tensor": 2, "pipeline": 2, "virtual_pipeline": 2}}


def save_model(folder: Path, precision: str, tied: bool, vocab: int = 77, **changes: Any) -> str:
    model = tiny_qwen2(
        seed=3, vocab_size=vocab, intermediate_size=48, num_attention_heads=8, num_key_value_heads=4,
        tie_word_embeddings=tied, **changes,
    ).to(DTYPES[precision])  # fmt: skip
    model.save_pretrained(folder, max_shard_size="30KB")
    (folder / "tokenizer.json").write_text('{"marker": 1}')
    return str(folder)


def tensors_of(folder: Path | str) -> dict[str, torch.Tensor]:
    return {name: tensor for file in Path(folder).glob("*.safetensors") for name, tensor in load_file(file).items()}


def prepared_cases(root: Path, layouts: dict[str, dict[str, int]]) -> dict[str, dict[str, Any]]:
    cases = {}
    for precision in DTYPES:
        for tied in (True, False):
            label = f"{precision}-{'tied' if tied else 'untied'}"
            source = save_model(root / label, precision, tied)
            for name, layout in layouts.items():
                out = str(root / "out" / f"{name}-{label}")
                cases[f"{name}-{label}"] = {"source": source, "precision": precision, "layout": layout, "out": out}
    label = "bf16-qwen3"
    source = save_model(root / label, "bf16", tied=True, **QWEN3)
    for name, layout in layouts.items():
        out = str(root / "out" / f"{name}-{label}")
        cases[f"{name}-{label}"] = {"source": source, "precision": "bf16", "layout": layout, "out": out}
    return cases


def assert_round_trip(case: dict[str, Any], checksum: str) -> None:
    before, after = tensors_of(case["source"]), tensors_of(case["out"])
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor), name
    assert checksum == checksum_folder(case["source"]) == checksum_folder(case["out"])
    assert (Path(case["out"]) / "tokenizer.json").read_text() == '{"marker": 1}'


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("two_ranks")
    cases = prepared_cases(root, TWO_RANKS)
    wrapped = {**cases["tp2-fp32-untied"], "wrapped": True, "out": str(root / "out" / "wrapped")}
    cases["tp2-fp32-untied-wrapped"] = wrapped
    source = wrapped["source"]
    arguments = {
        "cases": list(cases.values()),
        "source": source,
        "layouts": list(TWO_RANKS.values()),
        "imported": str(root / "imported"),
        "imported_by_two": str(root / "imported_by_two"),
        "small_vocabulary": save_model(root / "small", "fp32", False, vocab=30),
        "broken": break_folders(root / "broken"),
        "sync_root": str(root / "weights"),
        "through_mbridge": str(root / "through_mbridge"),
        "tokens": [torch.randint(0, 77, (length,)).tolist() for length in (5, 40, 2, 17)],
    }
    convert_hf.main(["import", "--hf", source, "--out", arguments["imported"]])
    engines = [(2, "")] * len(TWO_RANKS) + [(1, "die 3")]
    arguments["received"] = str(root / "received")
    (root / "received").mkdir()
    with weight_peer.running(root / "received", *engines) as urls:
        arguments["engines"] = [urls[:-1], urls[-1]]
        results = run_ranks("tests.distributed.checks_hf:two_ranks", ranks=2, arguments=arguments)
    return {**arguments, "cases": cases, "results": results}


def break_folders(root: Path) -> list[str]:
    """A missing tensor, a wrong shape, a cut file."""
    folders = [Path(save_model(root / name, "fp32", False)) for name in ("missing", "shape", "cut")]
    target = "model.layers.2.mlp.up_proj.weight"
    for folder, change in zip(folders, (None, torch.zeros(3, 3), "cut"), strict=True):
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        file = folder / index["weight_map"][target]
        tensors = load_file(file)
        if change is None:
            del tensors[target], index["weight_map"][target]
        elif isinstance(change, torch.Tensor):
            tensors[target] = change
        save_file(tensors, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        if change == "cut":
            file.write_bytes(file.read_bytes()[:-1])
    return [str(folder) for folder in folders]


def test_two_rank_round_trips_are_bit_exact(two: dict[str, Any]) -> None:
    for result in two["results"]:
        for case, checksum in zip(two["cases"].values(), result["round_trips"], strict=True):
            assert_round_trip(case, checksum)


@pytest.mark.long
def test_four_rank_round_trips_are_bit_exact(tmp_path: Path) -> None:
    cases = list(prepared_cases(tmp_path, FOUR_RANKS).values())
    for checksums in run_ranks("tests.distributed.checks_hf:round_trips", ranks=4, cases=cases):
        for case, checksum in zip(cases, checksums, strict=True):
            assert_round_trip(case, checksum)


def test_one_changed_value_is_named_under_any_layout(two: dict[str, Any]) -> None:
    for result in two["results"]:
        assert result["changed"] == ["1: 1 of the 1536 values of model.layers.3.mlp.down_proj.weight differ"] * 3


def test_two_ranks_verify_a_tied_model_that_one_rank_imported(tmp_path: Path) -> None:
    source = save_model(tmp_path / "hf", "bf16", tied=True)
    (tmp_path / "hf" / "tokenizer.json").unlink()
    convert_hf.main(["import", "--hf", source, "--out", str(tmp_path / "checkpoint")])
    run_ranks(
        "tests.distributed.checks_hf:verify_on_two_ranks", ranks=2, hf=source, checkpoint=str(tmp_path / "checkpoint")
    )


def test_random_weights_are_invariant_to_the_layout(two: dict[str, Any]) -> None:
    assert len({checksum for result in two["results"] for checksum in result["random"]}) == 1


def test_padding_rows_are_zero_even_on_a_rank_that_holds_nothing_else(two: dict[str, Any]) -> None:
    assert [result["padding"] for result in two["results"]] == [[0.0, 0.0], [0.0, 0.0]]


def test_every_rank_names_the_fault_of_a_broken_folder(two: dict[str, Any]) -> None:
    first, second = (result["faults"] for result in two["results"])
    assert first == second
    missing, shape, cut, unwritable = first
    assert "tensor model.layers.2.mlp.up_proj.weight is missing" in missing
    assert "model.layers.2.mlp.up_proj.weight has shape [3, 3], config.json asks for [48, 32]" in shape
    assert "is damaged or truncated" in cut and ".safetensors" in cut
    assert "is a file" in unwritable
    assert all("\n" not in message for message in first)


def test_weight_sync_prepares_versions_with_checksums_and_keeps_two(two: dict[str, Any]) -> None:
    first, second = (result["sync"] for result in two["results"])
    assert first == second
    versions = [WeightVersion.parse(text) for text in first]
    root = Path(two["sync_root"])
    assert sorted(p.name for p in root.iterdir()) == ["1.0", "2.0"]
    assert [checksum_folder(root / f"{v.step}.{v.attempt}") for v in versions[1:]] == [v.checksum for v in versions[1:]]
    assert len({v.checksum for v in versions}) == 3


def test_engines_get_the_tensors_of_the_folder_in_its_order_from_any_layout(two: dict[str, Any]) -> None:
    first, second = (result["transfer"] for result in two["results"])
    assert first[:-1] == second[:-1] == ["2.0."] * len(TWO_RANKS)
    expected = tensors_of(two["source"])
    files = sorted(Path(two["received"]).glob("*.safetensors"))
    assert len(files) == 2 * len(TWO_RANKS)
    for file in files:
        received = load_file(file)
        assert received.keys() == expected.keys()
        assert all(torch.equal(received[name], tensor) for name, tensor in expected.items())


def test_an_engine_that_dies_in_a_transfer_is_named_on_every_rank(two: dict[str, Any]) -> None:
    first, second = (result["transfer"][-1] for result in two["results"])
    assert first == second and two["engines"][1] in first and "Server disconnected" in first and "\n" not in first


def test_imported_checkpoint_loads_bit_exact_under_any_layout(two: dict[str, Any]) -> None:
    expected = {checksum_folder(two["source"])}
    assert {checksum for result in two["results"] for checksum in result["imported"]} == expected


def test_checkpoint_imported_by_two_ranks_exports_the_same_bits_from_one(two: dict[str, Any], tmp_path: Path) -> None:
    convert_hf.main(["export", "--checkpoint", two["imported_by_two"], "--out", str(tmp_path / "out")])
    assert checksum_folder(tmp_path / "out") == checksum_folder(two["source"])


def test_mbridge_agrees_on_every_parameter(two: dict[str, Any]) -> None:
    for result in two["results"]:
        assert result["mbridge"]["different"] == [] and result["mbridge"]["wrong"] == []
        assert result["mbridge"]["exported"] == sorted(tensors_of(two["source"]))


def test_mbridge_makes_the_same_log_probs_of_our_export_and_of_our_checkpoint(two: dict[str, Any]) -> None:
    model = Qwen2ForCausalLM.from_pretrained(two["source"]).float().eval()
    exported = load_file(Path(two["through_mbridge"], "from_checkpoint.safetensors"))
    assert model.load_state_dict(exported, strict=False).unexpected_keys == []
    assert {name for name, _ in model.named_parameters()} <= exported.keys()
    for result in two["results"]:
        found = result["logprobs"]
        assert found["from_export"] == found["ours"], "bit for bit"
        for tokens, logprobs in zip(two["tokens"], found["ours"], strict=True):
            with torch.no_grad():
                expected = torch.log_softmax(model(torch.tensor([tokens])).logits[0, :-1], -1)
            expected = expected.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(logprobs), expected, rtol=0, atol=1e-4)
