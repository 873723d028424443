"""Log-probs, loss and gradient norm do not depend on the layout: all against transformers and torch's AdamW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.distributed.checks_grpo import SAME, check_loss_function
from tests.support.layout_oracle import LENGTHS, MODELS, lengths_of, write_tiny_qwen
from tests.support.ranks import run_ranks

TWO_RANKS: dict[str, dict[str, Any]] = {
    "TP2 with SP": {"parallel": {"tensor": 2}},
    "TP2 without SP": {"parallel": {"tensor": 2, "sequence": False}},
    "PP2": {"parallel": {"pipeline": 2}},
    "PP2 VPP2": {"parallel": {"pipeline": 2, "virtual_pipeline": 2}},
    "CP2": {"parallel": {"context": 2}},
    "DP2": {"parallel": {}},
    "DP2 plain optimizer": {"parallel": {"distributed_optimizer": False}},
    "TP2 full recompute": {"parallel": {"tensor": 2}, "training": {"recompute": "full"}},
    "PP2 selective recompute": {"parallel": {"pipeline": 2}, "training": {"recompute": "selective"}},
    "TP2 bf16": {"parallel": {"tensor": 2}, "training": {"precision": "bf16"}},
}
FOUR_RANKS: dict[str, dict[str, Any]] = {
    "TP2 PP2": {"parallel": {"tensor": 2, "pipeline": 2}},
    "TP2 PP2 VPP2": {"parallel": {"tensor": 2, "pipeline": 2, "virtual_pipeline": 2}},
    "TP2 CP2": {"parallel": {"tensor": 2, "context": 2}},
    "PP2 CP2": {"parallel": {"pipeline": 2, "context": 2}},
    "TP2 DP2 overlap": {"parallel": {"tensor": 2, "overlap": True}},
    "CP2 DP2": {"parallel": {"context": 2}},
}
SOME = {
    "tied": ("TP2 with SP", "PP2", "PP2 VPP2", "CP2", "TP2 PP2"),
    "qwen3": ("TP2 with SP", "TP2 without SP", "PP2", "CP2", "TP2 CP2"),
}
"""Layouts that a tied output layer and a Qwen3 run under; the untied Qwen2.5 runs under all."""
EXACT = [("untied", layout) for layout in (*TWO_RANKS, *FOUR_RANKS) if "bf16" not in layout] + [
    (model, layout) for model, layouts in SOME.items() for layout in layouts
]
MAX_LOGPROB_ERROR = 1e-4
MAX_LOSS_ERROR = 3e-5  # of the second step too: rounding, which AVX-512 does in another order, has moved the weights
MAX_GRAD_NORM_ERROR = 5e-5

Results = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny-qwen")
    for name in MODELS:
        write_tiny_qwen(root / name, name)
    return {name: root / name for name in MODELS}


@pytest.fixture(scope="module")
def results(folders: dict[str, Path]) -> Results:
    """What every rank measured, by number of ranks: one torchrun launch each."""
    paths = {name: str(folder) for name, folder in folders.items()}
    target = "tests.distributed.checks_layouts:measure"
    return {
        ranks: run_ranks(target, ranks=ranks, folders=paths, layouts=layouts, some=SOME, losses=losses)
        for ranks, layouts, losses in ((2, TWO_RANKS, []), (4, FOUR_RANKS, ["TP2 CP2"]))
    }


def _measured(results: Results, model: str, layout: str) -> dict[str, float]:
    """The worst rank's figures."""
    ranks = [rank[f"{model} {layout}"] for rank in results[2 if layout in TWO_RANKS else 4]]
    return {name: max(rank[name] for rank in ranks) for name in ranks[0]}


def test_oracle_is_hard(folders: dict[str, Path]) -> None:
    assert sum(LENGTHS[0]) >= 4096
    for folder in folders.values():
        assert load_file(folder / "oracle.tensors")["largest_logit"] >= 8


@pytest.mark.parametrize(("model", "layout"), EXACT)
def test_log_probs_equal_transformers(results: Results, model: str, layout: str) -> None:
    measured = _measured(results, model, layout)
    assert measured["sequences"] == sum(map(len, lengths_of(model)))
    assert measured["logprob"] <= MAX_LOGPROB_ERROR
    assert measured["entropy"] <= MAX_LOGPROB_ERROR


@pytest.mark.parametrize(("model", "layout"), EXACT)
def test_no_attention_across_documents(results: Results, model: str, layout: str) -> None:
    measured = _measured(results, model, layout)
    assert measured["changed"] > 1  # the changed document's own log-probs do move …
    assert measured["leak"] == 0  # … and no other's, not by a bit


@pytest.mark.parametrize(("model", "layout"), EXACT)
def test_loss_and_gradient_norm_do_not_depend_on_the_layout(results: Results, model: str, layout: str) -> None:
    """Over two optimizer steps, so that a gradient wrong in one parameter moves the second loss."""
    measured = _measured(results, model, layout)
    assert measured["loss"] <= MAX_LOSS_ERROR
    assert measured["grad_norm"] <= MAX_GRAD_NORM_ERROR


@pytest.mark.parametrize("path", SAME)
def test_a_loss_function_of_the_users_own_is_the_built_in_one(results: Results, path: str) -> None:
    for rank in results[4]:
        check_loss_function(rank["loss_functions"][f"TP2 CP2/{path}"], path)


@pytest.mark.parametrize("layout", SOME["qwen3"])
def test_a_teacher_of_another_family_gives_the_log_probs_of_transformers(results: Results, layout: str) -> None:
    ranks = results[2 if layout in TWO_RANKS else 4]
    assert 0 < max(rank["teacher"][layout] for rank in ranks) <= MAX_LOGPROB_ERROR


def test_recompute_changes_nothing(results: Results) -> None:
    for recomputed, plain in (("TP2 full recompute", "TP2 with SP"), ("PP2 selective recompute", "PP2")):
        assert _measured(results, "untied", recomputed) == _measured(results, "untied", plain)


def test_bf16_stays_near_fp32(results: Results) -> None:
    measured = _measured(results, "untied", "TP2 bf16")
    assert measured["leak"] == 0
    assert 0 < measured["loss"] < 0.1
    assert measured["grad_norm"] < 0.1


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensors_and_json_reach_every_rank(results: Results, ranks: int) -> None:
    for rank in results[ranks]:
        assert rank["exchange"]["same"]
        assert rank["exchange"]["names"] == ["flags", "half", "scalar", "empty"]
        assert rank["exchange"]["json"] == {"é": [1, None]}
        assert "check/never" in rank["exchange"]["waited"]
