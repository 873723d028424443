"""The same with Transformer Engine: its real Python and Megatron's wrappers, over a stand-in for its extension."""

from __future__ import annotations

import pytest

from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.rehearsal import shim
from megatron_lwz.rehearsal.case import Report
from megatron_lwz.rehearsal.pool import rehearse
from megatron_lwz.rehearsal.small import BY_NAME
from tests.rehearsal.cases import ENGINE_CASES
from tests.support.paths import ROOT

ENGINE = ROOT / "build" / "transformer_engine"
PACKS = 2


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


def test_layers_and_optimizer_are_transformer_engines(reports: dict[str, Report]) -> None:
    """Four products per layer forward, eight backward; ours are the output layer and the loss."""
    layers = BY_NAME["one GPU"].layers
    launches = reports[ENGINE_CASES[0].name].launches
    assert {name: count for name, count in launches.items() if not name.startswith("transformer_engine.")} == {
        "linear_logprob.statistics": PACKS,
        "grpo_loss.token_loss": PACKS,
        "linear_logprob.gradient": PACKS,
    }
    assert launches["transformer_engine.generic_gemm"] == PACKS * layers * 12
    assert (
        launches["transformer_engine.fused_attn_fwd"] == launches["transformer_engine.fused_attn_bwd"] == PACKS * layers
    )
    assert launches["transformer_engine.rmsnorm_fwd"] == PACKS * (2 * layers + 1)
    assert launches["transformer_engine.multi_tensor_adam"] > 0
