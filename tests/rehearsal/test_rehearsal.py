"""The GPU code of one rank on fake CUDA tensors: it runs, waits for the GPU only where it is known to, and faults show.

One process rehearses all cases; each is a fork of it (megatron_lwz/rehearsal/worker.py).
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.rehearsal import shim
from megatron_lwz.rehearsal.case import Case, Report
from megatron_lwz.rehearsal.decoding import REPLAYED
from megatron_lwz.rehearsal.pool import rehearse
from megatron_lwz.rehearsal.small import BY_NAME
from tests.rehearsal.cases import (
    ALL,
    CASES,
    CONTEXT,
    DECODE,
    DECODE_SHARED,
    DRAWS,
    FAULT_CASES,
    FAULTS,
    GRPO_CASES,
    LORA,
    ONE_GPU,
    TENSOR,
    UNRECORDABLE,
    with_fault,
)
from tests.rehearsal.waits import PER_STEP

PACKS = 2


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    try:
        shim.build()
    except EnvironmentSetupError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "2")  # as a user's shell may say: forks of a process with threads would hang
        return {report.name: report for report in rehearse([*CASES, *FAULT_CASES])}


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_the_gpu_code_runs(reports: dict[str, Report], name: str) -> None:
    assert reports[name].error is None, reports[name].detail


def test_every_layer_and_every_pack_launches_its_kernels(reports: dict[str, Report]) -> None:
    layers = BY_NAME["one GPU"].layers
    assert reports[ONE_GPU.name].launches == {
        "layers.rms_norm_forward": PACKS * (2 * layers + 1),
        "layers.rms_norm_backward": PACKS * (2 * layers + 1),
        "layers.rotate_heads": PACKS * 2 * layers,
        "layers.swiglu_forward": PACKS * layers,
        "layers.swiglu_backward": PACKS * layers,
        "linear_logprob.statistics": PACKS,
        "grpo_loss.token_loss": PACKS,
        "linear_logprob.gradient": PACKS,
    }


def test_memory_is_that_of_the_tensors(reports: dict[str, Report]) -> None:
    """bf16 parameters; fp32 gradients; fp32 masters and two moments, sharded over the ranks of DP × CP."""
    alone, shared = reports[ONE_GPU.name], reports[ALL.name]
    for report, ranks in ((alone, 1), (shared, 4)):
        sizes = [report.peaks[phase] for phase in ("parameters", "gradients", "optimizer")]
        assert sizes[0] == pytest.approx(2 * report.parameters, rel=0.02)
        assert report.peaks["forward+backward"] > sizes[2] - sizes[0]
        assert sizes[2] == pytest.approx((2 + 4 + 12 / ranks) * report.parameters, rel=0.05)
    assert reports[TENSOR.name].parameters == pytest.approx(alone.parameters / 2, rel=0.02)


def test_with_lora_the_adapter_alone_has_gradients_and_an_optimizer(reports: dict[str, Report]) -> None:
    frozen, whole = reports[LORA.name], reports[ALL.name]
    adapter = frozen.parameters - whole.parameters
    assert frozen.state["parameters"] == pytest.approx(2 * frozen.parameters, rel=0.02)
    assert frozen.state["gradients"] == pytest.approx(4 * adapter, rel=0.05)
    assert frozen.state["optimizer"] == pytest.approx(12 / 4 * adapter, rel=0.05)
    assert frozen.notes["shard"] == pytest.approx((2 + 12 / 4) * adapter, rel=0.05), "of a checkpoint"


PER_PACK = {
    "megatron_lwz/kernels/linear_logprob/problem.py:make_problem": 1,  # which rows have a label
    "megatron_lwz/models/attention.py:plan_pieces": 1,  # where segments begin
}
"""Place → how often it waits in the forward and backward pass of a pack, without a pipeline."""
PER_PACK_OF = {
    ONE_GPU.name: PER_PACK,
    TENSOR.name: PER_PACK | {"megatron_lwz/kernels/linear_logprob/rows.py:cut": 1},  # rows of each rank
    # No token loss, so the backward pass finds the rows that have a gradient; and one step between four packs.
    CONTEXT.name: PER_PACK
    | {"megatron_lwz/kernels/linear_logprob/separable.py:backward": 2}
    | {place: count / 4 for place, count in PER_STEP.items()},
}


@pytest.mark.parametrize("name", PER_PACK_OF)
def test_a_pack_waits_for_the_gpu_only_where_it_is_known_to(reports: dict[str, Report], name: str) -> None:
    assert waits_per_pack(reports[name]) == PER_PACK_OF[name]


def test_a_step_waits_as_often_whatever_the_number_of_packs_and_tensors(reports: dict[str, Report]) -> None:
    for case in (ONE_GPU, TENSOR, ALL):
        assert waits_in(reports[case.name], "step") == PER_STEP, case.name
    for case in GRPO_CASES:
        assert waits_in(reports[case.name], "step").keys() == PER_STEP.keys(), case.name


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(reports: dict[str, Report], fault: str) -> None:
    error = reports[with_fault(fault).name].error
    assert error is not None and re.search(FAULTS[fault], error), error


@pytest.mark.parametrize("case", [DECODE, DECODE_SHARED], ids=lambda case: case.name)
def test_a_decode_step_is_recorded_and_waits_only_where_tokens_are_drawn(
    reports: dict[str, Report], case: Case
) -> None:
    report = reports[case.name]
    steps = report.notes["steps"]
    once = {place for place in waits_in(report, "decode") if place.endswith(":__init__")}  # of a batch and its sampler
    assert waits_in(report, "decode").keys() == {*DRAWS, *once}
    assert [waits_in(report, "decode")[place] for place in DRAWS] == [steps, steps]
    assert report.launches["cuda graph"] == REPLAYED


def test_a_wait_in_a_recorded_step_is_refused(reports: dict[str, Report]) -> None:
    error = reports[UNRECORDABLE.name].error
    assert error is not None and "a wait for the GPU cannot be recorded in a CUDA graph: item at " in error, error


def test_an_extra_wait_is_seen(reports: dict[str, Report]) -> None:
    """One `.item()` per layer and pass is counted where it stands, and nothing else changes."""
    report, layers = reports[with_fault("extra_wait").name], BY_NAME["one GPU"].layers
    assert report.error is None, report.detail
    added = waits_per_pack(report).items() - PER_PACK.items()
    assert [count for _, count in added] == [layers]
    assert len(waits_per_pack(report)) == len(PER_PACK) + 1


def waits_per_pack(report: Report) -> dict[str, float]:
    """Place → its waits in the forward and backward pass of one pack."""
    return {place: count / report.micro_batches for place, count in waits_in(report, "forward+backward").items()}


def waits_in(report: Report, phase: str) -> Counter[str]:
    """Place → its waits in a phase."""
    found: Counter[str] = Counter()
    for row in report.waits:
        if row.phase == phase:
            found[row.place] += row.count
    return found
