"""The best checkpoint: named by a pointer, chosen among what is on disk, kept while its evaluation goes on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from megatron_lwz.config import validate
from megatron_lwz.errors import ConfigError
from megatron_lwz.evaluation.pinned import PinnedEvaluations
from megatron_lwz.metrics import MetricsWriter
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.best import mark_best
from megatron_lwz.training.checkpoint import pointed_at
from megatron_lwz.types import WeightVersion

METRIC = "eval/reward/length"


def config(**checkpoint: object):
    return validate({"checkpoint": {"best_metric": METRIC} | checkpoint})


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    """Evaluations after 0 to 8 updates, checkpoints at 2, 4 and 8."""
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        for step, value in ((0, 0.9), (2, 0.5), (4, 0.8), (6, 1.0), (8, math.nan)):
            writer.write_evaluation(step, {METRIC: value})
    for step in (2, 4, 8):
        add_checkpoint(tmp_path, step)
    return RunPaths(tmp_path)


def add_checkpoint(root: Path, step: int) -> None:
    folder = root / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text("{}")


def best(run: RunPaths) -> str:
    return (run.checkpoints / "best").read_text()


def test_the_pointer_names_the_best_that_is_on_disk(run):
    mark_best(run, config(), 8)
    assert best(run) == "step_00000004" and pointed_at(run.checkpoints) == {"step_00000004"}
    add_checkpoint(run.root, 6)  # written while training went on, complete only now
    mark_best(run, config(), 8)
    assert best(run) == "step_00000006"
    mark_best(run, config(best_direction="min"), 8)
    assert best(run) == "step_00000002"
    mark_best(run, config(), 2)
    assert best(run) == "step_00000002", "what was measured at later steps is of a time that the run went back from"


def test_nothing_is_named_before_there_is_anything(tmp_path):
    run = RunPaths(tmp_path)
    mark_best(run, config(), 4)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write_evaluation(2, {METRIC: 1.0})
    mark_best(run, config(), 4)
    mark_best(run, validate({}), 4)
    assert not run.checkpoints.exists()


def test_a_metric_that_no_evaluation_has_is_one_line(run):
    with pytest.raises(ConfigError, match=r"checkpoint\.best_metric.*there are eval/reward/length"):
        mark_best(run, config(best_metric="eval/beauty"), 8)


def test_a_checkpoint_that_is_being_evaluated_stays(run):
    evaluations = PinnedEvaluations(run.root)
    evaluations.begin(WeightVersion(2, 0, "aa"), None)
    mark_best(run, config(), 8)
    assert pointed_at(run.checkpoints) == {"step_00000002", "step_00000004"}
    evaluations.end(2)
    assert pointed_at(run.checkpoints) == {"step_00000004"}


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"checkpoint": {"best_metric": METRIC}, "data": {"held_out_prompts": None}}, "checkpoint.best_metric"),
        ({"checkpoint": {"best_metric": ""}}, "checkpoint.best_metric"),
        ({"checkpoint": {"best_metric": "reward/length"}}, "checkpoint.best_metric"),
        (
            {"checkpoint": {"best_metric": METRIC, "interval": 10}, "evaluation": {"interval": 15}},
            "evaluation.interval",
        ),
        ({"rollout": {"engine": "vllm", "urls": ["http://a"]}}, "evaluation.urls"),
        ({"rollout": {"urls": ["http://a"]}, "evaluation": {"urls": ["http://a"]}}, "evaluation.urls"),
        ({"evaluation": {"quality": True}}, "evaluation.quality"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(sections, key):
    tree = {"data": {"prompts": "p.jsonl", "held_out_prompts": "h.jsonl"} | sections.pop("data", {})}
    with pytest.raises(ConfigError) as caught:
        validate(tree | sections).check_grpo()
    assert f"'{key}'" in str(caught.value) and "\n" not in str(caught.value)


def test_settings_that_fit():
    tree = {
        "data": {"prompts": "p.jsonl", "held_out_prompts": "h.jsonl"},
        "checkpoint": {"best_metric": METRIC, "interval": 5},
        "evaluation": {"interval": 15, "urls": ["http://b"], "quality": True},
        "rollout": {"urls": ["http://a"]},
        "judge": {"url": "http://j", "model": "m"},
    }
    validate(tree).check_grpo()
