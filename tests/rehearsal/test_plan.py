"""A plan of a small model: what engines add at each instant, which layouts are rejected and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import yaml

from megatron_lwz.cli import common
from megatron_lwz.cli import plan as plan_command
from megatron_lwz.cli import simulate as simulate_command
from megatron_lwz.config import Config, validate
from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.planner.advice import advice
from megatron_lwz.planner.engines import Engines, engines_of
from megatron_lwz.planner.hardware import Gpu, gpu
from megatron_lwz.planner.plan import Setting, make_plan
from megatron_lwz.planner.rehearsals import Rehearsals
from megatron_lwz.planner.search import Learned, least_state, search
from megatron_lwz.planner.timing import Work
from megatron_lwz.rehearsal import shim

WORK = Work(64, 200)


def grpo(**sections: dict[str, Any]) -> Config:
    architecture = {
        "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512,
    }  # fmt: skip
    tree: dict[str, Any] = {
        "model": {"architecture": architecture},
        "training": {"tokens_per_micro_batch": 512},
        "data": {"prompts": "prompts.jsonl", "max_prompt_tokens": 32},
        "rollout": {"max_new_tokens": 400},
    }
    return validate({name: {**tree.get(name, {}), **sections.get(name, {})} for name in {*tree, *sections}})


@pytest.fixture(scope="module")
def rehearsals() -> Iterator[Rehearsals]:
    try:
        shim.build()
    except EnvironmentSetupError as error:
        pytest.skip(str(error))
    with Rehearsals() as found:
        yield found


def with_engine(config: Config, card: Gpu, *, embedded: bool = False) -> tuple[Setting, Engines]:
    engines = engines_of(config, card, 2, 1, 200)
    return Setting("grpo", card, WORK, engines, embedded), engines


def test_an_embedded_engine_is_beside_the_trainer_at_every_instant(rehearsals: Rehearsals) -> None:
    config, card = grpo(), gpu("h100-80g")
    alone = make_plan(config, 2, Setting("grpo", card, WORK), rehearsals)
    setting, engines = with_engine(config, card, embedded=True)
    beside = make_plan(config, 2, setting, rehearsals)
    added = {beside.instants[0][name] - size for name, size in alone.instants[0].items()}
    assert len(added) == 1 and added.pop() > engines.weights
    assert alone.reason is None and beside.reason is None
    assert "rollout" in beside.seconds and "rollout" not in alone.seconds


def test_engines_that_share_the_cards_have_a_turn_of_their_own(rehearsals: Rehearsals) -> None:
    config, card = grpo(rollout={"colocated": True}), gpu("h100-80g")
    alone = make_plan(config, 2, Setting("grpo", card, WORK), rehearsals)
    setting, engines = with_engine(config, card)
    shared = make_plan(config, 2, setting, rehearsals)
    assert set(shared.instants[0]) - set(alone.instants[0]) == {"engine's turn"}
    assert shared.instants[0]["update"] == alone.instants[0]["update"]
    assert shared.instants[0]["export"] == alone.instants[0]["export"] + engines.weights
    assert engines.cache < shared.instants[0]["engine's turn"] <= card.memory


def test_what_the_layout_cannot_split_is_the_reason(rehearsals: Rehearsals) -> None:
    plan = make_plan(grpo(parallel={"tensor": 4}), 4, Setting("grpo", gpu("h100-80g"), WORK), rehearsals)
    assert plan.reason is not None and "must divide the model's 2 key-value heads" in plan.reason


def test_the_search_ends_with_what_fits_and_rejects_with_reasons(rehearsals: Rehearsals) -> None:
    config, whole = grpo(), gpu("h100-80g")
    setting = Setting("grpo", whole, WORK)
    found = search(config, 2, setting, Learned(rehearsals), keep=1, most=3)
    assert found[-1].reason is None and found[-1].ranks
    peak = found[-1].peak
    tiny = Setting("grpo", whole.model_copy(update={"memory_gb": 0.2 * peak / 1e9}), WORK)
    rejected = search(config, 2, tiny, Learned(rehearsals), keep=1, most=2)
    assert rejected and all(plan.reason for plan in rejected)
    now = make_plan(config, 2, tiny, rehearsals)
    assert now.reason is not None and "at the instant" in now.reason
    sentences = advice(now, None, tiny, config)
    assert sentences[0].startswith("The config does not fit") and "the largest part is" in sentences[1]
    assert advice(now, found[-1], tiny, config)[2].startswith("Use parallel.tensor=")


def test_what_a_search_has_learned_spares_the_next_one_its_rehearsals(rehearsals: Rehearsals) -> None:
    config, learned = grpo(), Learned(rehearsals)
    roomy = Setting("grpo", gpu("h100-80g"), WORK)
    now = make_plan(config, 2, roomy, rehearsals)
    above_state, _ = learned.above_state(config, 2, roomy)
    assert above_state == max(memory.instants["update"] - memory.state for memory in now.ranks)
    room = int((least_state(config, 8) + above_state) / 1.2)  # too little for every recomputation's packs
    tight = Setting("grpo", roomy.card.model_copy(update={"memory_gb": room / 1e9}), WORK)
    reason = next(plan.reason for plan in search(config, 8, tight, learned, keep=1, most=1) if not plan.ranks)
    assert reason is not None and "scaled from a rehearsed layout, not rehearsed" in reason


def test_the_command_prints_memory_time_layouts_and_advice(
    rehearsals: Rehearsals, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(plan_command, "Rehearsals", lambda _watch: nullcontext(rehearsals))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(grpo().model_dump(mode="json")))
    options = ["--gpus", "2", "--gpu", "h800-80g", "--keep", "1", "--price", "2", "--mean-tokens", "100"]
    assert common.run(plan_command.main, [str(file), *options]) == 0
    out = capsys.readouterr().out
    for said in (
        "plan of grpo for 2 × NVIDIA H800 SXM5 80 GB; nothing was measured on a GPU",
        "the config: 2 GPUs, tensor 1 × context 1 × pipeline 1 × data 2: fits",
        "at most: update",
        "GPU-hours",
        "cost",
        "layouts, in the order in which they were tried",
        "what to change first:",
        "memory share 0.65",
    ):
        assert said in out, said


def test_a_simulation_takes_the_numbers_of_the_plan_and_leaves_out_what_it_refuses(
    rehearsals: Rehearsals, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("megatron_lwz.planner.rehearsals.Rehearsals", lambda _watch: nullcontext(rehearsals))
    urls = {"engine": "vllm", "urls": ["http://127.0.0.1:1"], "max_staleness": 1}
    config, card = grpo(parallel={"tensor": 2}, rollout=urls), gpu("h100-80g")
    file, out = tmp_path / "config.yaml", tmp_path / "out.json"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    options = ["--gpus", "4", "--engine-gpus", "1,2", "--steps", "2", "--json", str(out)]
    assert common.run(simulate_command.main, [str(file), *options]) == 0
    said = capsys.readouterr()
    assert "--engine-gpus 1 is left out: no plan for 3 GPUs that train: config key 'parallel'" in said.err
    (row,) = json.loads(out.read_text())
    work = Work(config.training.prompts_per_step * config.grpo.group_size, 200 + 300)
    engines = engines_of(config, card, 2, None, 200)
    plan = make_plan(config, 2, Setting("grpo", card, work, engines), rehearsals)
    trainer, sync = row["setting"]["trainer"], row["setting"]["sync"]
    assert trainer["per_token"] * work.tokens + trainer["fixed"] == pytest.approx(plan.training_seconds, rel=1e-3)
    assert sync["export"] + sync["load"] == pytest.approx(plan.seconds["weight sync"])
    assert row["setting"]["engines"]["count"] == engines.count
    assert common.run(simulate_command.main, [str(file), "--gpus", "4", "--engine-gpus", "1"]) == 2
