"""LoRA under every layout: log-probs, gradients and steps against torch; checkpoints, merged export, PEFT folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from megatron_lwz.config.sections import LoraSection
from tests.support.lora_oracle import CASES, LENGTHS, logprobs, tokens, write_oracle
from tests.support.ranks import run_ranks

PLAIN = {"distributed_optimizer": False}
RUNS: dict[str, list[Any]] = {
    "TP2 with SP": ["all", {"parallel": {"tensor": 2}}],
    "TP2 without SP some modules": ["some", {"parallel": {"tensor": 2, "sequence": False}}],
    "PP2 selective recompute": ["mlp", {"parallel": {"pipeline": 2}, "training": {"recompute": "selective"}}],
    "CP2": ["all", {"parallel": {"context": 2} | PLAIN}],
}
MORE_RUNS: dict[str, list[Any]] = {
    "TP2 without SP": ["all", {"parallel": {"tensor": 2, "sequence": False}}],
    "TP2 full recompute": ["all", {"parallel": {"tensor": 2}, "training": {"recompute": "full"}}],
    "PP2": ["all", {"parallel": {"pipeline": 2}}],
    "PP2 VPP2": ["all", {"parallel": {"pipeline": 2, "virtual_pipeline": 2}}],
    "DP2": ["all", {"parallel": {}}],
    "DP2 plain optimizer": ["all", {"parallel": PLAIN}],
    "TP2 overlap": ["some", {"parallel": {"tensor": 2, "overlap": True}}],
}
FOUR_RANKS: dict[str, list[Any]] = {
    "TP2 PP2 VPP2": ["all", {"parallel": {"tensor": 2, "pipeline": 2, "virtual_pipeline": 2}}],
    "TP2 CP2": ["all", {"parallel": {"tensor": 2, "context": 2} | PLAIN}],
    "TP2 DP2 overlap": ["all", {"parallel": {"tensor": 2, "overlap": True}}],
}
Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("lora")
    for case in CASES:
        write_oracle(root / case, case)
    return {case: str(root / case) for case in CASES}


@pytest.fixture(scope="module")
def results(folders: dict[str, str]) -> Results:
    return run_ranks("tests.distributed.checks_lora:measure", ranks=2, folders=folders, runs=RUNS)


@pytest.mark.parametrize("run", RUNS)
def test_it_computes_and_learns_what_pefts_formula_does(results: Results, run: str) -> None:
    check(results, run)


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "runs"), [(2, MORE_RUNS), (4, FOUR_RANKS)], ids=["2 ranks", "4 ranks"])
def test_it_does_so_under_every_layout(folders: dict[str, str], ranks: int, runs: dict[str, list[Any]]) -> None:
    found = run_ranks("tests.distributed.checks_lora:measure", ranks=ranks, folders=folders, runs=runs)
    for run in runs:
        check(found, run)


def check(results: Results, run: str) -> None:
    for rank in (result[run] for result in results):
        assert rank["logprob"] <= 1e-4, run
        assert rank["loss"] <= 3e-5, run  # over three optimizer steps, so that a wrong gradient moves the later ones
        assert rank["grad_norm"] <= 1e-4, run
        assert rank["gradients"] is None or rank["gradients"] <= 1e-4, run
        assert rank["untouched"], run
        assert rank["reference"] <= 1e-4 and rank["reference_bytes"] == 0 and rank["switched_back"], run


@pytest.fixture(scope="module")
def files(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    out = tmp_path_factory.mktemp("files")
    layouts = {"first": {"parallel": {"tensor": 2}}, "second": {"parallel": {"pipeline": 2}}}
    return out, run_ranks(
        "tests.distributed.checks_lora:files", ranks=2, folder=folders["all"], out=str(out), **layouts
    )


def test_a_checkpoint_holds_the_adapter_alone_for_any_layout(files: tuple[Path, Results]) -> None:
    for rank in files[1]:
        assert rank["extra"] == {"cursor": 3}
        assert rank["same"]
        assert rank["loss"] <= 1e-5 and rank["grad_norm"] <= 1e-4  # the moments came back, too
        assert rank["later"] != 0
    adapter = sum(tensor.numel() for tensor in load_file(files[0] / "adapter" / "adapter_model.safetensors").values())
    assert files[1][0]["tensors"] == 4 * 7 * 2
    stored = FileSystemReader(files[0] / "checkpoint").read_metadata().state_dict_metadata
    assert all(".lora." in name for name in stored)
    assert sum(tensor.size.numel() for tensor in stored.values()) == 3 * adapter  # the weights and Adam's two moments
    record = json.loads((files[0] / "checkpoint" / "state.json").read_text())
    assert len(record["adapter"]["base"]) == 32 and record["adapter"]["lora"]["rank"] == 4


def test_a_merged_export_is_base_and_adapter(files: tuple[Path, Results]) -> None:
    assert all(rank["merged"] < 1e-6 for rank in files[1])
    assert len({rank["checksum"] for rank in files[1]}) == 1


def test_the_peft_folder_names_one_function_for_peft_and_vllm(files: tuple[Path, Results]) -> None:
    """vLLM reads no patterns: factors of a module's own are in its B."""
    settings = json.loads((files[0] / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (6, 12)
    assert settings["rank_pattern"]["q_proj"] == 2 and settings["alpha_pattern"]["q_proj"] == 4
    assert {alpha / settings["rank_pattern"][name] for name, alpha in settings["alpha_pattern"].items()} == {2}


@pytest.mark.long  # peft is none of the tests' requirements: install it and accelerate to run this
def test_peft_itself_computes_the_same(folders: dict[str, str], files: tuple[Path, Results]) -> None:
    """Its log-probs and gradients are those of the formula, and of the exported folder those of the merged export."""
    peft = pytest.importorskip("peft")
    for case, folder in folders.items():
        lora, given, oracle = LoraSection.model_validate(CASES[case]), *_tensors(Path(folder))
        settings = peft.LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.modules), rank_pattern=dict(lora.ranks),
            alpha_pattern=dict(lora.alphas), task_type="CAUSAL_LM",
        )  # fmt: skip
        model = peft.get_peft_model(_transformers(folder), settings)
        adapter = {name: tensor for name, tensor in given.items() if name.startswith("base_model.")}
        assert not peft.set_peft_model_state_dict(model, adapter).unexpected_keys
        values = [logprobs(model, given[f"tokens.{index}"]) for index in range(len(LENGTHS))]
        loss = -sum((value * given[f"weights.{index}"]).sum() for index, value in enumerate(values)) / tokens()
        loss.backward()
        trained = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
        assert trained.keys() == adapter.keys()
        for index, value in enumerate(values):
            torch.testing.assert_close(value, oracle[f"logprob.{index}"], rtol=0, atol=1e-5)
        for name, parameter in trained.items():
            torch.testing.assert_close(parameter.grad, oracle[f"gradient.{name}"], rtol=1e-4, atol=1e-6)

    loaded = peft.PeftModel.from_pretrained(_transformers(folders["all"]), files[0] / "adapter")
    merged, base = _transformers(files[0] / "merged"), _transformers(folders["all"])
    given, _ = _tensors(Path(folders["all"]))
    with torch.no_grad():
        ours, theirs, before = (
            torch.cat([logprobs(model, given[f"tokens.{index}"]) for index in range(len(LENGTHS))])
            for model in (merged, loaded, base)
        )
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    assert (ours - before).abs().max() > 1


def _transformers(folder: Path | str) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _tensors(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return load_file(folder / "given.tensors"), load_file(folder / "oracle.tensors")
