"""Engines of a plan as the simulation has them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_lwz.config.presets import PRESETS
from megatron_lwz.errors import LwzError
from megatron_lwz.planner.engines import Engines
from megatron_lwz.planner.hardware import gpu
from megatron_lwz.planner.simulation.lengths import Drawn, quantile_of
from megatron_lwz.planner.simulation.outcome import simulate
from megatron_lwz.planner.simulation.planned import planned_engines
from megatron_lwz.planner.simulation.setting import Setting, Trainer, WeightSync

LAW = Drawn(quantile_of("uniform:7000"), 14000, 300, 16)


def test_a_decode_step_is_the_plans_with_one_stream_and_with_all_slots() -> None:
    plan = Engines(PRESETS["qwen2.5-32b"], 8, 4, gpu("h100-80g"), 16048, 128)
    found = planned_engines(plan, LAW)
    assert (found.count, found.slots) == (8, plan.at_once(LAW.context))
    for streams in (1, found.slots):
        assert found.decoding.step_seconds(streams) == pytest.approx(plan.step_seconds(streams, LAW.context))
    assert found.prefill is not None and found.prefill > found.slots / found.decoding.step_seconds(found.slots)
    assert planned_engines(replace(plan, concurrency=1), LAW).decoding.per_stream == 0


def test_the_context_of_a_token_is_half_a_long_text_more_often_than_half_a_short_one() -> None:
    constant, uniform = (replace(LAW, quantile=quantile_of(law)) for law in ("constant:7000", "uniform:7000"))
    assert constant.context == pytest.approx(300 + 3500)
    assert uniform.context == pytest.approx(300 + 14000 / 3, rel=1e-3)


@pytest.mark.parametrize(("count", "tensor", "concurrency"), [(8, 4, 128), (4, 8, 128), (2, 2, 64)])
def test_a_synchronous_rollout_takes_as_long_as_in_the_plan(count: int, tensor: int, concurrency: int) -> None:
    """With slots for all rollouts, and with fewer. A plan's engines get equal shares, the simulated ones do not."""
    plan = Engines(PRESETS["qwen2.5-32b"], count, tensor, gpu("h800-80g"), 16048, concurrency)
    law = replace(LAW, size=32)
    setting = Setting(3, 16, planned_engines(plan, law), Trainer(0.0), WeightSync(0.0))
    waited = simulate(setting, law).waited
    assert plan.seconds(16 * 32, 7000, 14000, 300) == pytest.approx(waited, rel=0.1)
    assert plan.slots(7000, 300) == setting.engines.slots


def test_an_engine_without_room_is_one_line() -> None:
    plan = Engines(PRESETS["qwen2.5-32b"], 8, 1, gpu("h100-80g"), 16048, 128)
    with pytest.raises(LwzError, match="an engine of 1 GPUs has no room for a rollout: set --engine-tensor"):
        planned_engines(plan, replace(LAW, quantile=quantile_of("constant:14000")))
