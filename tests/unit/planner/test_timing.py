"""Time of a step: FLOPs, links and the pipeline's bubble."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_lwz.config import Config, validate
from megatron_lwz.config.presets import PRESETS
from megatron_lwz.planner.assumptions import ASSUMED
from megatron_lwz.planner.engines import parameters
from megatron_lwz.planner.hardware import gpu
from megatron_lwz.planner.timing import Work, layout_of, packs_per_rank, recomputed, seconds_of
from megatron_lwz.rehearsal.case import Report, TransferRow

CARD, WORK = gpu("h100-80g"), Work(1024, 7300)
REPORT = Report("rank", state={"parameters": 2, "gradients": 4, "optimizer": 3 * 10**9}, micro_batches=1)


def config(parallel: dict[str, Any], **training: Any) -> Config:
    return validate({"model": {"preset": "qwen2.5-7b"}, "parallel": parallel, "training": training})


def seconds(parallel: dict[str, Any], *rows: TransferRow, world: int = 8, **training: Any) -> dict[str, float]:
    given = config(parallel, **training)
    return seconds_of(given, layout_of(given, world), WORK, CARD, [replace(REPORT, transfers=rows)])


def test_a_step_is_three_forward_passes_at_the_assumed_share_of_the_peak() -> None:
    found = seconds({"tensor": 4})["forward and backward"]
    flops = 6 * parameters(PRESETS["qwen2.5-7b"]) * WORK.tokens
    least = flops / (8 * CARD.bf16_tflops * 1e12 * ASSUMED.matrix_share.value)
    assert 0.9 * least < found < 1.5 * least, "attention comes on top, the embedding is no product"


def test_log_probs_take_time_only_where_the_config_has_passes_for_them() -> None:
    assert "log-probs" not in seconds({})
    assert seconds({}, updates_per_batch=2)["log-probs"] == pytest.approx(seconds({})["forward and backward"] / 3)


def test_recomputation_adds_at_most_a_forward_pass() -> None:
    arch = PRESETS["qwen2.5-7b"]
    none, selective, full = (recomputed(arch, name, 7300) for name in ("none", "selective", "full"))
    assert 0 == none < selective < full < 1


def test_a_pipeline_waits_at_both_ends() -> None:
    plain, stages = (seconds({"pipeline": stages})["forward and backward"] for stages in (1, 4))
    packs = packs_per_rank(config({"pipeline": 4}), layout_of(config({"pipeline": 4}), 8), WORK)
    assert stages == pytest.approx(plain * (1 + 3 / packs))


def test_groups_within_a_machine_use_nvlink_and_others_the_network() -> None:
    row = TransferRow("forward+backward", "all-gather", "tensor", 4, 1, 10**9)
    alone, inside = (seconds({"tensor": 4}, *rows)["forward and backward"] for rows in ((), (row,)))
    far = replace(row, group="context")
    outside = seconds({"tensor": 4, "context": 4}, far, world=16)["forward and backward"]
    without = seconds({"tensor": 4, "context": 4}, world=16)["forward and backward"]
    packs = [
        packs_per_rank(config(p), layout_of(config(p), w), WORK)
        for p, w in (({"tensor": 4}, 8), ({"tensor": 4, "context": 4}, 16))
    ]
    assert inside - alone == pytest.approx(packs[0] * 0.75e9 / (450e9 * 0.65))
    assert outside - without == pytest.approx(packs[1] * 0.75e9 / (50e9 * 0.9))


def test_an_all_reduce_moves_twice_what_a_gather_moves_and_receiving_nothing_more() -> None:
    def of(operation: str) -> float:
        return seconds({}, TransferRow("step", operation, "data", 8, 1, 8 * 10**9))["optimizer"]

    none = of("receive")
    assert of("all-reduce") - none == pytest.approx(2 * (of("all-gather") - none))
