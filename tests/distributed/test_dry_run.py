"""A dry run's bytes are those that ranks of the same layout allocate, to the byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_lwz.cli import dry_run_tables
from megatron_lwz.config import validate
from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.planner.dry_run import Memory, RankKind, case_of, run_cases
from megatron_lwz.planner.hardware import gpus
from megatron_lwz.rehearsal import shim
from tests.support.grpo_runs import write_example
from tests.support.ranks import run_ranks

RANKS = 2
HIDDEN = 64 * 48 * 2
"""Bytes of the hidden states of a pack: tokens × width × bf16."""
ARCHITECTURE = {
    "num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 1003,
}  # fmt: skip


def tree(parallel: dict[str, Any], precision: str = "bf16", **architecture: Any) -> dict[str, Any]:
    return {
        "model": {"architecture": ARCHITECTURE | architecture, "vocab_padding": 8},
        "parallel": parallel | {"stall_minutes": 0},
        "training": {"precision": precision, "tokens_per_micro_batch": 64, "sequence_length": 40},
    }


TREES = {
    "tp2": tree({"tensor": 2}),
    "pp2": tree({"pipeline": 2}),
    "pp2 tied": tree({"pipeline": 2}, tie_word_embeddings=True),
    "dp2": tree({}),
    "dp2 overlap fp32": tree({"overlap": True}, "fp32"),
    "dp2 plain optimizer": tree({"distributed_optimizer": False}),
    "cp2": tree({"context": 2}),
}
WHOLE = ("tp2", "pp2", "dp2")


@pytest.fixture(scope="module")
def measured() -> list[dict[str, dict[str, int]]]:
    return run_ranks("tests.distributed.checks_dry_run:held", ranks=RANKS, trees=TREES)


@pytest.fixture(scope="module")
def compiled() -> None:
    try:
        shim.build()
    except EnvironmentSetupError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def rehearsed(compiled) -> dict[tuple[str, int], Memory]:
    """Of every rank, the state alone; of the first ranks in WHOLE, a step too."""
    places = [(name, rank) for name in TREES for rank in range(RANKS)] + [(name, -1) for name in WHOLE]
    kinds = [RankKind(0, 1, max(0, rank)) for _, rank in places]
    cases = [
        case if rank < 0 else replace(case, stage="export", then=())
        for (name, rank), kind in zip(places, kinds, strict=True)
        for case in [case_of(validate(TREES[name]), "sft", RANKS, kind)]
    ]
    return dict(zip(places, run_cases(kinds, cases), strict=True))


@pytest.fixture(scope="module")
def steps(rehearsed) -> dict[str, Memory]:
    return {name: rehearsed[name, -1] for name in WHOLE}


@pytest.mark.parametrize("name", TREES)
def test_bytes_of_parameters_gradients_and_optimizer_are_those_of_real_ranks(measured, rehearsed, name: str) -> None:
    for rank in range(RANKS):
        assert rehearsed[name, rank].report.state == measured[rank][name]


def test_the_first_rank_has_the_largest_share_of_the_optimizer(measured) -> None:
    for name in ("dp2", "dp2 overlap fp32", "cp2"):
        first, last = (measured[rank][name]["optimizer"] for rank in range(RANKS))
        assert first >= last


def test_the_peaks_include_the_state_and_a_whole_pack(steps) -> None:
    for memory in steps.values():
        instants = memory.instants
        assert list(instants) == ["start", "update", "optimizer step", "validation", "export"]
        assert memory.state <= min(instants.values()) and memory.peak == max(instants.values()) <= memory.report.peak
        assert instants["update"] > memory.state + HIDDEN // 2  # sequence parallelism halves it


def test_the_collectives_are_those_of_the_layout(steps) -> None:
    def bytes_of(name: str, phase: str, operation: str, group: str) -> int:
        chosen = (row for row in steps[name].report.transfers if row.ranks > 1)
        wanted = (phase, operation, group)
        return sum(row.bytes for row in chosen if (row.phase, row.operation, row.group) == wanted)

    state = steps["dp2"].report.state
    assert bytes_of("dp2", "step", "reduce-scatter", "data") == state["gradients"]
    assert bytes_of("dp2", "step", "all-gather", "data") == state["parameters"]
    assert bytes_of("tp2", "forward+backward", "all-gather", "tensor") > HIDDEN
    assert bytes_of("tp2", "step", "reduce-scatter", "data") == 0
    packs = steps["pp2"].report.micro_batches
    assert packs == 2, "as many as stages"
    assert packs * HIDDEN <= bytes_of("pp2", "forward+backward", "send", "pipeline") < packs * HIDDEN + 200


def test_a_rank_that_does_not_fit_is_an_error_after_the_tables(steps, capsys) -> None:
    config, card = validate(TREES["dp2"]), gpus()["h100-80g"]
    dry_run_tables.show(config, [steps["dp2"]], card)
    assert "fits: at most 0.0 of 74.5 GiB" in capsys.readouterr().out
    with pytest.raises(dry_run_tables.DoesNotFit, match=r"every rank needs 0\.0 of 0\.0 GiB .* at the instant"):
        dry_run_tables.show(config, [steps["dp2"]], card.model_copy(update={"memory_gb": 1e-3}))
    assert "optimizer" in capsys.readouterr().out


def test_prompts_that_a_dry_run_on_the_ranks_refuses_end_all_ranks(tmp_path: Path) -> None:
    config = write_example(tmp_path, data={"curriculum": {"stages": [{"name": "long", "asked_from": 9000}]}})
    ends = run_ranks(
        "tests.distributed.checks_dry_run:refused",
        ranks=RANKS,
        argv=[str(config), "--dry-run", "device"],
        timeout=120.0,
    )
    for rank, (status, said) in enumerate(ends):
        where = f" (rank {rank})" if rank else ""
        assert status == 2 and said.startswith(
            f"error{where}: config key 'data.curriculum.stages.0' = 'long': no prompt"
        )
