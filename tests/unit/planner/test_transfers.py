"""Weight sync on paper: what every link carries, how long it takes, what stays in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_lwz.config.presets import PRESETS
from megatron_lwz.planner.assumptions import ASSUMED
from megatron_lwz.planner.hardware import gpu
from megatron_lwz.planner.timing import Layout
from megatron_lwz.planner.transfers import Route, deltas, disk, from_rank_0, of_transport, resharded

BUCKET = 2**30
ROUTE = Route(PRESETS["qwen2.5-32b"], Layout(8, 2, 1, 1, 2), 8, 4, gpu("h100-80g"), BUCKET)


def test_the_file_system_is_written_once_and_read_once() -> None:
    found = disk(ROUTE)
    assert found.held == pytest.approx(ROUTE.weights / ASSUMED.disk_bytes_per_second.value)
    assert found.before == pytest.approx(found.held + ROUTE.gathering)


def test_rank_0_sends_everything_through_one_adapter_after_it_has_gathered_it() -> None:
    found = from_rank_0(ROUTE)
    assert found.received == found.sent == ROUTE.weights and found.before == 0
    assert found.held == pytest.approx(ROUTE.weights * (7 / 8 / (450e9 * 0.65) + 1 / (50e9 * 0.9)))
    assert found.trainer_memory > BUCKET
    assert from_rank_0(replace(ROUTE, trainer=Layout(1, 2, 1, 1, 16))).held == pytest.approx(ROUTE.weights / 45e9)


def test_a_pipelines_stages_come_over_the_network_where_they_are_on_other_machines() -> None:
    far, near = (replace(ROUTE, trainer=Layout(1, 1, 4, 1, copies)).gathering for copies in (8, 2))
    assert far == pytest.approx(ROUTE.weights * 3 / 4 / 45e9) and near == pytest.approx(far * 45 / (450 * 0.65))


def test_with_all_ranks_the_busier_side_sets_the_pace() -> None:
    even = resharded(ROUTE)  # 32 ranks send to 32 GPUs
    assert even.sent == even.received == ROUTE.weights / 4
    few, many = (resharded(replace(ROUTE, engines=engines)) for engines in (1, 32))
    assert few.held == even.held and many.held == 4 * even.held


def test_deltas_are_a_value_and_a_number_each_and_never_more_than_all_weights() -> None:
    whole = resharded(ROUTE)
    assert deltas(ROUTE, 0.01).sent == pytest.approx(whole.sent * 0.03)
    assert deltas(ROUTE, 0.5).sent == whole.sent and deltas(ROUTE, 0.5).held == whole.held
    assert deltas(ROUTE, 0.01).trainer_memory == ROUTE.weights / 32 + BUCKET


def test_the_configs_transport_names_the_way() -> None:
    assert of_transport(ROUTE, "nccl") == from_rank_0(ROUTE) and of_transport(ROUTE, "disk") == disk(ROUTE)
