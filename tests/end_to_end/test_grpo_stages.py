"""GRPO with a curriculum of prompts, for real: a change of stage, then starts that go on from before it and after it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from megatron_lwz.metrics import read_metrics
from megatron_lwz.types import Prompt, Rollout
from tests.support import stages
from tests.support.grpo_runs import train, write_example
from tests.support.journal_checks import trained
from tests.support.waiting import wait_for

pytestmark = pytest.mark.long

STEPS = 8
STILL = "optimizer.lr=1.0e-12"
"""Moves no weight: what engines write that are a step ahead then depends on seeds alone, not on when weights arrive."""
GATE = {"metric": "known", "at_least": 0.5, "window": 2, "min_steps": 3}


def known(prompt: Prompt, rollouts: Sequence[Rollout]) -> list[float]:
    """A score that depends on the prompt and the sibling alone."""
    return [(int(prompt.id[1:]) + rollout.index) % 4 / 3 for rollout in rollouts]


def write_run(folder: Path) -> Path:
    config = write_example(
        folder,
        training={"steps": STEPS},
        rollout={"max_new_tokens": 60, "max_staleness": 1},
        reward={"functions": ["tests.support.grpo_runs:share_of_spaces", f"{__name__}:known"]},
        data={
            "held_out_prompts": None,
            "curriculum": {
                "success": "known",
                "success_at_least": 0.6,
                "easy": 0.75,
                "hard": 0.25,
                "rest_epochs": 1,
                "stages": [{"name": "short", "asked_to": 30, "max_new_tokens": 20, "gate": GATE}, {"name": "long"}],
            },
        },
    )
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["length"] = {"lower": 5, "upper": 10 * (number + 1)}
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config


def drawn(run: Path) -> list[tuple]:
    """What the curriculum says of every group and step."""
    with closing(sqlite3.connect(run / "journal.sqlite")) as db:
        query = "SELECT id, prompt, admitted, stage, epoch, most_tokens, step, success, value FROM groups JOIN draws ON id = draws.group_id LEFT JOIN outcomes ON id = outcomes.group_id ORDER BY id"
        return db.execute(query).fetchall() + db.execute("SELECT * FROM stages ORDER BY step").fetchall()


def curriculum_metrics(run: Path) -> list[dict[str, float]]:
    rows = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name.startswith("curriculum/")} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    said = train(write_run(folder))
    assert "curriculum: stage 1 of 2, 'short', from step 1 on: 3 of 5 prompts (0 to 30), at most 20 tokens" in said
    assert (
        "curriculum: stage 2 of 2, 'long', from step 4 on: 5 prompts, at most 60 tokens per response; 'short' ends with known"
        in said
    )
    return folder


def test_lengths_grow_with_the_stage_and_never_beyond_its_limit(undisturbed: Path) -> None:
    with closing(sqlite3.connect(undisturbed / "run" / "journal.sqlite")) as db:
        limits = dict(db.execute("SELECT group_id, most_tokens FROM draws"))
    lengths: dict[int, list[int]] = {}
    for group, _, _, tokens, *_ in trained(undisturbed / "run" / "journal.sqlite"):
        lengths.setdefault(limits[group], []).append(len(tokens))
    assert max(lengths[20]) == 20 < max(lengths[60]) <= 60
    rows = curriculum_metrics(undisturbed / "run")
    assert [row["curriculum/stage"] for row in rows] == [1, 1, 1, 2, 2, 2, 2, 2]
    assert "Stage of the curriculum" in (undisturbed / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_goes_on_from_before_the_change_bit_for_bit_also_in_another_layout(
    undisturbed: Path, tmp_path: Path, ranks: int
) -> None:
    """As if the run had died after its last step, with the checkpoint of step 2 alone."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed / "run", run)
    (run / "summary.json").unlink()
    first, *others = sorted(path for path in (run / "checkpoints").iterdir() if path.is_dir())
    for other in others:
        shutil.rmtree(other)
    (run / "checkpoints" / "latest").write_text(first.name)
    train(undisturbed / "config.yaml", f"run.dir={run}", f"parallel.tensor={ranks}", ranks=ranks)
    assert drawn(run) == drawn(undisturbed / "run")
    assert curriculum_metrics(run) == curriculum_metrics(undisturbed / "run")
    assert trained(run / "journal.sqlite") == trained(undisturbed / "run" / "journal.sqlite")
    if ranks == 1:
        before, after = (read_metrics(folder / "run" / "metrics.jsonl") for folder in (undisturbed, tmp_path))
        for name in ("loss", "grad_norm", "entropy", "rollout/mean_length"):
            assert [row[name] for row in after] == [row[name] for row in before], name


@pytest.fixture(scope="module")
def still(undisturbed: Path) -> Path:
    """The folder of the same run, whose policy does not move."""
    train(undisturbed / "config.yaml", f"run.dir={undisturbed / 'still'}", STILL)
    return undisturbed / "still"


@pytest.mark.parametrize("rows", [2, 4, 6])
def test_a_run_that_is_killed_draws_the_same_prompts_in_the_same_stages(
    undisturbed: Path, still: Path, tmp_path: Path, rows: int
) -> None:
    run, config = tmp_path / "run", str(undisturbed / "config.yaml")
    metrics = run / "metrics.jsonl"
    process = stages.start("train_grpo", config, f"run.dir={run}", STILL)
    wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) >= rows, seconds=240, process=process)
    stages.kill(process)
    train(undisturbed / "config.yaml", f"run.dir={run}", STILL, "rollout.controller=process")
    assert drawn(run) == drawn(still)
    assert curriculum_metrics(run) == curriculum_metrics(still)


def test_another_curriculum_is_refused_unless_it_is_allowed(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed / "run", run)
    more = [str(undisturbed / "config.yaml"), f"run.dir={run}", f"training.steps={STEPS + 1}"]
    done = stages.run("train_grpo", *more, "data.curriculum.easy=0.9")
    assert done.returncode == 2 and "run.allow_change=data.curriculum" in done.stderr
    other = "data.curriculum.stages=[{name: first, gate: {max_steps: 20}}, {name: second}]"
    done = stages.run("train_grpo", *more, other, "run.allow_change=data.curriculum")
    assert done.returncode == 2 and "the run is in stage 'long', which is not among the stages" in done.stderr
    done = stages.run("train_grpo", *more, "data.curriculum.stages=[{name: long}]", "run.allow_change=data.curriculum")
    assert done.returncode == 0 and curriculum_metrics(run)[-1]["curriculum/stage"] == 1
