"""Evaluation beside the main job for real: an engine of its own, one version of the weights each, kill −9, best checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.metrics import read_metrics
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.types import Group, VersionSegment
from tests.support.grpo_runs import ROOT, command, train, variables, write_example
from tests.support.waiting import wait_for

STEPS = 4
METRIC = "eval/reward/share_of_spaces"
SAMPLES = 8
LIMIT = 300
"""Tokens of every rollout."""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    write_example(
        folder,
        endless=True,  # every rollout runs to its limit: an evaluation takes longer than a step
        training={"steps": STEPS, "tokens_per_micro_batch": 1024},
        rollout={"max_new_tokens": LIMIT, "stop": [], "engine_threads": 1},
        evaluation={"concurrent": True, "interval": 2, "samples": SAMPLES, "most_begun": 3},
        checkpoint={"interval": 2, "keep": 1, "best_metric": METRIC, "best_direction": "min"},
    )
    return folder


@pytest.fixture(scope="module")
def undisturbed(example: Path) -> Path:
    # by the real command line, of torchrun and of both engines: an evaluation begins with the start of its own
    train(example / "config.yaml", f"run.dir={example / 'whole'}", "parallel.tensor=2", ranks=2, real=True)
    return example / "whole"


def groups_of(run: Path) -> dict[int, list[Group]]:
    """Step → the groups of its evaluation."""
    found: dict[int, list[Group]] = {}
    with JournalReader(run / "journal.sqlite") as journal:
        for group in journal.groups("evaluation"):
            found.setdefault(group.admitted, []).append(group)
    return found


def segments(groups: list[Group]) -> list[VersionSegment]:
    return [segment for group in groups for rollout in group.rollouts for segment in rollout.versions]


def check_evaluations(run: Path) -> None:
    """Each is there once, complete, and all its tokens are of one version: that of its step."""
    assert [row["step"] for row in read_metrics(run / "evaluation.jsonl")] == [0, 2, 4]
    found = groups_of(run)
    assert sorted(found) == [0, 2, 4]
    for step, groups in found.items():
        assert sorted(group.prompt.id for group in groups) == ["p5", "p6"]
        assert all(len(group.rollouts) == SAMPLES for group in groups)
        assert all(len(rollout.tokens) == LIMIT for group in groups for rollout in group.rollouts)
        assert len({str(segment.version) for segment in segments(groups)}) == 1
        assert {segment.version.step for segment in segments(groups)} == {step}
    assert list((run / "evaluation").iterdir()) == []


def test_one_version_writes_each_evaluation_while_training_goes_on(undisturbed: Path) -> None:
    check_evaluations(undisturbed)
    rows = read_metrics(undisturbed / "evaluation.jsonl")
    assert rows[0]["eval/steps_behind"] > 0, "updates were made while the first evaluation was written"
    assert all(row["eval/rollout/mean_length"] == LIMIT and row["eval/seconds"] > 0 for row in rows)
    assert {"eval/text/s_l", "eval/text/empty", METRIC} <= set(rows[0])
    with JournalReader(undisturbed / "journal.sqlite") as journal:
        trained = {group.admitted - 1: group for group in journal.groups()}
    for step, groups in groups_of(undisturbed).items():
        if step in trained:  # what the step after it was trained on, written by the same weights
            mine, theirs = (segments(some)[0].version for some in (groups, [trained[step]]))
            assert (mine.step, mine.checksum) == (theirs.step, theirs.checksum)


def test_the_best_checkpoint_stays_and_is_named(undisturbed: Path) -> None:
    checkpoints = undisturbed / "checkpoints"
    rows = read_metrics(undisturbed / "evaluation.jsonl")
    best = min((row for row in rows if row["step"] > 0), key=lambda row: row[METRIC])
    assert (checkpoints / "best").read_text() == f"step_{int(best['step']):08d}"
    kept = {path.name for path in checkpoints.glob("step_*")}
    assert kept >= {(checkpoints / "best").read_text(), (checkpoints / "latest").read_text()} and len(kept) <= 3
    assert "Best checkpoint: step_" in (undisturbed / "report.html").read_text()


@pytest.mark.long
def test_killed_in_an_evaluation_it_goes_on_and_counts_nothing_twice(example: Path, undisturbed: Path) -> None:
    run = example / "killed"
    arguments = command(example / "config.yaml", f"run.dir={run}")
    before: dict[str, tuple[int, ...]] = {}
    for moment in (in_the_middle_of_an_evaluation, after_a_checkpoint):
        process = subprocess.Popen(arguments, cwd=ROOT, env=variables(), start_new_session=True)
        wait_for(partial(moment, run), seconds=240, process=process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        before |= written(run)
    assert before
    train(example / "config.yaml", f"run.dir={run}")
    check_evaluations(run)
    after = {rollout.id: rollout.tokens for groups in groups_of(run).values() for g in groups for rollout in g.rollouts}
    gone_on = [name for name, tokens in before.items() if name in after and after[name][: len(tokens)] == tokens]
    assert gone_on, "what was written before a kill is kept"
    assert {group for group in before if group not in after} <= dropped(run), "and only what other weights wrote is not"
    assert json.loads((run / "summary.json").read_text())["steps"] == STEPS


def written(run: Path) -> dict[str, tuple[int, ...]]:
    """Durable tokens of evaluation rollouts that have any."""
    with JournalReader(run / "journal.sqlite") as journal:
        query = "SELECT group_id, rollout, tokens FROM deltas WHERE group_id < 0 ORDER BY group_id, rollout, start"
        found: dict[str, tuple[int, ...]] = {}
        for group, index, tokens in journal._db.execute(query):
            name = f"{group}-{index}"
            found[name] = found.get(name, ()) + tuple(memoryview(tokens).cast("i"))
    return found


def dropped(run: Path) -> set[str]:
    with JournalReader(run / "journal.sqlite") as journal:
        ids = [group for (group,) in journal._db.execute("SELECT group_id FROM dropped")]
    return {f"{group}-{index}" for group in ids for index in range(SAMPLES)}


def in_the_middle_of_an_evaluation(run: Path) -> bool:
    """Some tokens of the first evaluation are durable, and none of its rollouts is complete."""
    try:
        return 0 < max(map(len, written(run).values()), default=0) < LIMIT
    except DataError:  # no journal yet
        return False


def after_a_checkpoint(run: Path) -> bool:
    """An evaluation that is of a checkpoint, or of an earlier step, has begun and is not recorded."""
    latest = run / "checkpoints" / "latest"
    begun = sorted(path.stem for path in (run / "evaluation").glob("step_*.json"))
    return latest.is_file() and bool(begun) and begun[0] <= latest.read_text()
