"""The state of a model with Transformer Engine: its real Python and Megatron's wrappers, over a stand-in extension."""

from __future__ import annotations

import pytest

from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.rehearsal import shim
from megatron_lwz.rehearsal.case import Report
from megatron_lwz.rehearsal.pool import rehearse
from tests.rehearsal.cases import ENGINE_CASES
from tests.support.paths import ROOT

ENGINE = ROOT / "build" / "transformer_engine"


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    if not (ENGINE / "transformer_engine").is_dir():
        pytest.skip(f"no {ENGINE}: make setup puts Transformer Engine's Python there")
    try:
        shim.build()
    except EnvironmentSetupError as error:
        pytest.skip(str(error))
    return {report.name: report for report in rehearse(ENGINE_CASES, engine=ENGINE)}


@pytest.mark.parametrize("name", [case.name for case in ENGINE_CASES])
def test_the_gpu_code_runs_with_transformer_engine(reports: dict[str, Report], name: str) -> None:
    assert reports[name].error is None, reports[name].detail


def test_the_optimizer_is_transformer_engines(reports: dict[str, Report]) -> None:
    launches = reports[ENGINE_CASES[1].name].launches
    assert launches["transformer_engine.multi_tensor_adam"] > 0
    assert launches["transformer_engine.multi_tensor_l2norm"] == 1
