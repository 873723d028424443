"""The stages of a curriculum: which prompts they hold, and settings that cannot work, said before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_lwz.config import Config, readers, validate
from megatron_lwz.config.curriculum import CurriculumSection
from megatron_lwz.data.curriculum import describe, make_pools, planned
from megatron_lwz.errors import ConfigError
from megatron_lwz.types import LengthRange, Prompt

PROMPTS = [Prompt(str(upper), "x", LengthRange(1, upper) if upper else None) for upper in (0, 500, 2000, 2001, 9000)]
GATE = {"at_least": 0.7}
SHORT = {"name": "short", "asked_to": 2000, "max_new_tokens": 5000, "gate": GATE}


def section(*stages: dict[str, Any], **settings: Any) -> CurriculumSection:
    return validate({"data": {"curriculum": {"stages": list(stages), **settings}}}).data.curriculum


def test_it_is_off_by_default_and_only_grpo_reads_it() -> None:
    assert not Config().data.curriculum.used and readers("data.curriculum.stages") == ("grpo",)


def test_a_pool_holds_the_prompts_that_ask_for_its_lengths_in_the_order_of_the_file() -> None:
    middle = {"name": "middle", "asked_from": 2000, "asked_to": 8000, "gate": {"max_steps": 30, "metric": "length"}}
    found = make_pools(section(SHORT, middle, {"name": "all"}), PROMPTS, 14_000)
    assert [[prompt.id for prompt in pool.prompts] for pool in found] == [
        ["500", "2000"],
        ["2000", "2001"],
        ["0", "500", "2000", "2001", "9000"],
    ]
    assert [(pool.most_tokens, pool.first_step) for pool in found] == [(5000, 1), (14_000, 11), (14_000, 21)]
    assert describe(found, PROMPTS, 150, 2) == [
        "curriculum: stage 1 of 3, 'short', from step 1 on: 2 of 5 prompts (0 to 2000), at most 5,000 tokens per response; it ends once success reaches 0.7 over 10 steps",
        "curriculum: stage 2 of 3, 'middle', not before step 11: 2 of 5 prompts (2000 to 8000), at most 14,000 tokens per response; it ends after 30 steps",
        "curriculum: stage 3 of 3, 'all', not before step 21: 5 of 5 prompts (any length), at most 14,000 tokens per response; it stays to the end",
    ]


def test_what_is_surely_not_meant_is_said() -> None:
    found = make_pools(section(SHORT, {"name": "long", "asked_from": 5000}), PROMPTS, 14_000)
    assert describe(found, PROMPTS, 10, 2)[2:] == [
        "curriculum: 2 prompts are in no stage and are never drawn",
        "curriculum: a step of 2 prompts draws some of stage 'long' more than once",
        "curriculum: stage 'long' cannot begin within training.steps = 10: lower min_steps",
    ]


def test_plans_and_dry_runs_count_the_prompts_where_the_file_is_there(tmp_path: Path) -> None:
    config = {"data": {"prompts": str(tmp_path / "prompts.jsonl"), "curriculum": {"stages": [SHORT, {"name": "all"}]}}}
    (line,) = planned(validate(config))
    assert (
        line
        == f"curriculum: {tmp_path}/prompts.jsonl is not on this machine, so the prompts of the stages are not counted"
    )
    rows = [{"prompt": "x", "length": {"lower": 1, "upper": upper}} for upper in (100, 3000)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = planned(validate(config))
    assert "1 of 2 prompts (0 to 2000)" in said[0] and "2 of 2 prompts (any length)" in said[1]
    assert "a step of 32 prompts draws some of stage 'short', 'all' more than once" in said[2]
    assert planned(Config()) == []


def test_a_stage_without_prompts_is_named() -> None:
    stages = section(SHORT, {"name": "long", "asked_from": 20_000})
    with pytest.raises(ConfigError, match=r"data\.curriculum\.stages\.1' = 'long': no prompt asks for 20000 or more: they ask for 500 to 9000, and 1 have no range"):  # fmt: skip
        make_pools(stages, PROMPTS, 14_000)
    with pytest.raises(ConfigError, match=r"stages\.0' = 'short'.*no prompt has a length range"):
        make_pools(stages, PROMPTS[:1], 14_000)


def test_a_gate_on_lengths_needs_prompts_with_a_range() -> None:
    stages = section({"name": "first", "gate": GATE}, {"name": "all"})
    with pytest.raises(ConfigError, match=r"stages\.0\.gate\.metric' = 'length\.in_range': never has a value"):
        make_pools(stages, PROMPTS[:1], 14_000)
    make_pools(
        section({"name": "first", "gate": {"max_steps": 5, "min_steps": 5}}, {"name": "all"}), PROMPTS[:1], 14_000
    )


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"easy": 1.0}, r"curriculum\.easy' = 1\.0: does nothing without a stage"),
        ({"stages": [SHORT]}, r"stages\.0\.gate' = 'success': stage 'short' is the last one: leave its gate out"),
        ({"stages": [{"name": "a"}, {"name": "b"}]}, r"stages\.0\.gate' = None: stage 'a' would never end"),
        ({"stages": [SHORT | {"gate": {}}, {"name": "b"}]}, r"stage 'short' would never end: set at_least or max_steps"),
        ({"stages": [SHORT | {"gate": {"at_least": 1.1}}, {"name": "b"}]}, r"at_least' = 1\.1: can never be reached: success is at most 1"),
        ({"stages": [SHORT | {"gate": GATE | {"max_steps": 5}}, {"name": "b"}]}, r"max_steps' = 5: must be at least min_steps = 10"),
        ({"stages": [SHORT, {"name": "short"}]}, r"stages\.1\.name' = 'short': is the name of an earlier stage"),
        ({"stages": [SHORT, {"name": "a\nb\x1b[31m"}]}, r"stages\.1\.name' = 'a\\nb\\x1b\[31m': must be one line"),
        ({"stages": [SHORT, {"name": " "}]}, r"stages\.1\.name' = ' ': must be one line"),
        ({"stages": [SHORT | {"asked_from": 3000}, {"name": "b"}]}, r"asked_to' = 2000: is below asked_from = 3000"),
        ({"stages": [{"name": "a", "max_new_tokens": 14_001}]}, r"max_new_tokens' = 14001: must be at most rollout\.max_new_tokens = 14000"),
        ({"stages": [{"name": "a"}], "easy": 0.5, "hard": 0.5}, r"hard' = 0\.5: must be below easy = 0\.5"),
        ({"stages": [{"name": "a"}], "success_at_least": 1.5}, r"success_at_least' = 1\.5: can never be reached"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_one_line(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate({"data": {"prompts": "p.jsonl", "curriculum": tree}}).check_grpo()


WRITE = r"one of its components, length, format, or a detail, e\.g\. length\.in_range"


@pytest.mark.parametrize(
    "metric", ["", " ", "writing", "writing.score", ".", "length.", ".in_range", "Success", "success.x"]
)
def test_a_gate_metric_that_is_no_score_of_the_run_is_refused_with_what_there_is(metric: str) -> None:
    stages = [{"name": "a", "gate": {"metric": metric, "at_least": 0.1}}, {"name": "b"}]
    with pytest.raises(ConfigError, match=rf"stages\.0\.gate\.metric' = '{metric}': .*: write success or {WRITE}"):
        validate({"data": {"prompts": "p.jsonl", "curriculum": {"stages": stages}}}).check_grpo()
    with pytest.raises(ConfigError, match=rf"curriculum\.success' = '{metric}': .*: write {WRITE}"):
        validate(
            {"data": {"prompts": "p.jsonl", "curriculum": {"stages": [{"name": "a"}], "success": metric}}}
        ).check_grpo()


def test_every_component_and_its_details_are_metrics_of_a_gate() -> None:
    functions = ["a.b:fluent", {"path": "a.b:f", "name": "x.y"}]
    for metric in ("success", "format", "length.in_range", "fluent", "x.y", "fluent.any.detail"):
        stages = [{"name": "a", "gate": {"metric": metric, "max_steps": 10}}, {"name": "b"}]
        tree = {"prompts": "p.jsonl", "curriculum": {"stages": stages}}
        validate({"data": tree, "reward": {"functions": functions}}).check_grpo()
