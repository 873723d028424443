"""A step and the state with Transformer Engine: its real Python and Megatron's wrappers, over a stand-in extension."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.rehearsal import shim
from megatron_lwz.rehearsal.case import Report
from megatron_lwz.rehearsal.pool import ENGINE, rehearse
from tests.rehearsal.cases import CHECKPOINT, ENGINE_CASES, ENGINE_CONTEXT, ENGINE_FAULTS, TENSOR, with_fault
from tests.rehearsal.waits import PER_STEP

CALLS = (
    "rmsnorm_fwd", "rmsnorm_bwd", "generic_gemm", "fused_rope_forward", "fused_rope_backward", "fused_attn_fwd",
    "fused_attn_bwd", "multi_tensor_l2norm", "multi_tensor_scale", "multi_tensor_adam",
)  # fmt: skip
FAULT_CASES = [with_fault(name) for name in ENGINE_FAULTS]
OLDEST = ENGINE.with_name(f"{ENGINE.name}-oldest")


@pytest.fixture(
    scope="module",
    params=[pytest.param(ENGINE, id="newest"), pytest.param(OLDEST, id="oldest", marks=pytest.mark.stacks)],
)
def reports(request: pytest.FixtureRequest) -> dict[str, Report]:
    """The newest and the oldest release that the installed Megatron-Core goes with."""
    engine: Path = request.param
    if not (engine / "transformer_engine").is_dir():
        pytest.skip(f"no {engine}: make setup (the oldest: make test-stacks) puts Transformer Engine's Python there")
    try:
        shim.build()
    except EnvironmentSetupError as error:
        pytest.skip(str(error))
    return {report.name: report for report in rehearse([*ENGINE_CASES, *FAULT_CASES], engine=engine)}


@pytest.mark.parametrize("name", [case.name for case in ENGINE_CASES])
def test_the_gpu_code_runs_with_transformer_engine(reports: dict[str, Report], name: str) -> None:
    assert reports[name].error is None, reports[name].detail


def test_every_layer_and_every_pack_calls_the_extension(reports: dict[str, Report]) -> None:
    layers, packs = 2, reports[TENSOR.name].micro_batches
    products = 4 * 3  # QKV, projection and two of the MLP: forward, gradient of the input and of the weight
    launches = reports[TENSOR.name].launches
    assert {name: launches[f"transformer_engine.{name}"] for name in CALLS} == {
        "rmsnorm_fwd": packs * (2 * layers + 1),
        "rmsnorm_bwd": packs * (2 * layers + 1),
        "generic_gemm": packs * layers * products,
        "fused_rope_forward": packs * layers * 2,
        "fused_rope_backward": packs * layers * 2,
        "fused_attn_fwd": packs * layers,
        "fused_attn_bwd": packs * layers,
        "multi_tensor_l2norm": 1,
        "multi_tensor_scale": 1,
        "multi_tensor_adam": 2,  # parameters with and without weight decay
    }
    assert reports[TENSOR.name].waits_in("step") == sum(PER_STEP.values()), "as without Transformer Engine"


def test_context_parallelism_attends_in_halves_of_the_segments(reports: dict[str, Report]) -> None:
    launches = reports[ENGINE_CONTEXT.name].launches
    assert launches["transformer_engine.thd_read_half_tensor"] > 0
    assert launches["transformer_engine.thd_grad_correction"] > 0


def test_a_save_adds_what_it_writes_and_a_load_less(reports: dict[str, Report]) -> None:
    """In host memory; nothing on the device. TP2 alone: the rank writes all that it holds."""
    notes = reports[CHECKPOINT.name].notes
    shard, added = notes["shard"], notes["added"]
    assert shard == notes["written"] == pytest.approx(14 * reports[CHECKPOINT.name].parameters, rel=0.01)
    assert [on_device for on_device, _ in added.values()] == [0, 0, 0]
    assert shard <= added["save"][1] < 1.1 * shard
    assert max(added["load"][1], added["save without a copy"][1]) < 0.2 * shard


@pytest.mark.parametrize("fault", ENGINE_FAULTS)
def test_a_planted_fault_is_seen(reports: dict[str, Report], fault: str) -> None:
    error = reports[with_fault(fault).name].error
    assert error is not None and re.search(ENGINE_FAULTS[fault], error), error
