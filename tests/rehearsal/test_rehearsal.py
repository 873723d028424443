"""The GPU code of one rank on fake CUDA tensors: it runs, waits for the GPU only where it is known to, and faults show.

One process rehearses all cases; each is a fork of it (megatron_lwz/rehearsal/worker.py).
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.rehearsal import shim
from megatron_lwz.rehearsal.case import Report
from megatron_lwz.rehearsal.pool import rehearse
from megatron_lwz.rehearsal.small import BY_NAME
from tests.rehearsal.cases import CASES, FAULT_CASES, FAULTS, LAYOUT_CASES, with_fault

PACKS = 2
ONE_GPU = BY_NAME["one GPU"].case("grpo", 0).name


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    try:
        shim.build()
    except EnvironmentSetupError as error:
        pytest.skip(str(error))
    return {report.name: report for report in rehearse([*CASES, *FAULT_CASES])}


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_the_gpu_code_runs(reports: dict[str, Report], name: str) -> None:
    assert reports[name].error is None, reports[name].detail


def test_every_layer_and_every_pack_launches_its_kernels(reports: dict[str, Report]) -> None:
    layers = BY_NAME["one GPU"].layers
    assert reports[ONE_GPU].launches == {
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
    """bf16 parameters; fp32 gradients; fp32 masters and two moments, sharded over data-parallel ranks."""
    alone, shared = reports[ONE_GPU], reports["grpo DP2 overlap rank 1"]
    for report, ranks in ((alone, 1), (shared, 2)):
        sizes = [report.peaks[phase] for phase in ("parameters", "gradients", "optimizer")]
        assert sizes[0] == pytest.approx(2 * report.parameters, rel=0.02)
        assert report.peaks["forward+backward"] > sizes[2] - sizes[0]
        assert sizes[2] == pytest.approx((2 + 4 + 12 / ranks) * report.parameters, rel=0.05)
    assert reports["grpo TP2 rank 0"].parameters == pytest.approx(alone.parameters / 2, rel=0.02)


def test_recomputation_saves_memory(reports: dict[str, Report]) -> None:
    selective, plain = (reports[name].peaks["forward+backward"] for name in ("grpo selective", ONE_GPU))
    assert selective < plain


PER_PACK = {
    "megatron_lwz/kernels/linear_logprob/problem.py:make_problem": 1,  # which rows have a label
    "megatron_lwz/models/attention.py:plan_pieces": 1,  # where segments begin
    "megatron_lwz/kernels/linear_logprob/rows.py:cut": 2,  # rows of each rank under sequence parallelism
}
"""Place → the most often that it may wait in the forward and backward pass of a pack, without a pipeline."""


@pytest.mark.parametrize("case", [case for case in LAYOUT_CASES if "PP" not in case.name], ids=lambda case: case.name)
def test_a_pack_waits_for_the_gpu_only_where_it_is_known_to(reports: dict[str, Report], case) -> None:
    counts = waits_per_pack(reports[case.name])
    assert {place: count for place, count in counts.items() if count > PER_PACK.get(place, 0)} == {}


def test_the_step_waits_do_not_grow_with_the_packs(reports: dict[str, Report]) -> None:
    """Counts that are read at its end; each place is Megatron's or `step.py`."""
    for case in LAYOUT_CASES:
        places = {row.place.rpartition("/")[2] for row in reports[case.name].waits if row.phase == "step"}
        assert places <= {
            "finalize_model_grads.py:finalize_model_grads", "clip_grads.py:get_grad_norm_fp32",
            "utils.py:local_multi_tensor_l2_norm", "step.py:_reduce", "step.py:finish",
        }, case.name  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(reports: dict[str, Report], fault: str) -> None:
    error = reports[with_fault(fault).name].error
    assert error is not None and re.search(FAULTS[fault], error), error


def test_an_extra_wait_is_seen(reports: dict[str, Report]) -> None:
    """One `.item()` per layer and pass is counted where it stands, and nothing else changes."""
    report, layers = reports[with_fault("extra_wait").name], BY_NAME["one GPU"].layers
    assert report.error is None, report.detail
    added = waits_per_pack(report) - waits_per_pack(reports[ONE_GPU])
    assert list(added.values()) == [layers]
    assert waits_per_pack(report).keys() - PER_PACK.keys() == added.keys()


def waits_per_pack(report: Report) -> Counter[str]:
    """Place → its waits in the forward and backward pass of one pack."""
    found: Counter[str] = Counter()
    for row in report.waits:
        if row.phase == "forward+backward":
            found[row.place] += row.count
    return Counter({place: count / report.micro_batches for place, count in found.items()})
