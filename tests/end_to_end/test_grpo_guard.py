"""The main job under the stream guard, for real: what it observes, what it stops, and that it changes nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_lwz.metrics import read_metrics
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.types import Alarm, FinishReason, Group
from tests.support.grpo_runs import train, write_example

INTERVAL = 8
GIVEN = {"length": 0.0, "format": -1.0}


def run(folder: Path, mode: str) -> tuple[list[Group], list[dict[str, float]]]:
    """A step of a policy that writes noise, hopeless from its first byte on; some rollouts end by themselves before a look."""
    folder.mkdir()
    guard = {"mode": mode, "interval": INTERVAL, "rules": ["format"], "scores": GIVEN}
    config = write_example(
        folder,
        rollout={"guard": guard, "stop": list("abcdefghijklmnopqrst")},
        reward={"functions": []},
        training={"steps": 1},
        data={"held_out_prompts": None},
    )
    train(config)
    with JournalReader(folder / "run" / "journal.sqlite") as journal:
        return list(journal.groups()), read_metrics(folder / "run" / "metrics.jsonl")


def test_stopped_rollouts_are_trained_on_with_the_scores_that_they_were_given(tmp_path: Path) -> None:
    groups, (row,) = run(tmp_path / "on", "on")
    rollouts = [(r, scores) for group in groups for r, scores in zip(group.rollouts, group.scores, strict=True)]
    stopped = [(r, scores) for r, scores in rollouts if r.finish_reason is FinishReason.GUARD]
    assert 0 < len(stopped) < 8, "others end by themselves before the first look"
    for rollout, scores in stopped:
        assert len(rollout.tokens) == INTERVAL and rollout.alarms == (Alarm("format", INTERVAL, True, GIVEN),)
        assert {name: score.value for name, score in scores.items()} == GIVEN and not rollout.truncated
    assert row["rollout/guard/format/stopped"] == len(stopped)
    assert row["rollout/guard/format/spared"] == 16 * len(stopped)
    assert row["grad_norm"] > 0, "a stopped rollout is worse than one that ended: that is learned from"
    report = (tmp_path / "on" / "run" / "report.html").read_text()
    assert "guard: format, stopped at token 8, scores given" in report


@pytest.mark.long
def test_observed_rollouts_go_on_and_stopped_ones_are_their_beginnings(tmp_path: Path) -> None:
    observed, (seen,) = run(tmp_path / "observe", "observe")
    stopped, _ = run(tmp_path / "on", "on")
    long = [rollout for group in observed for rollout in group.rollouts if rollout.alarms]
    assert 0 < len(long) < 8 and all(rollout.alarms == (Alarm("format", INTERVAL),) for rollout in long)
    assert all(rollout.finish_reason is not FinishReason.GUARD for rollout in long)
    assert seen["rollout/guard/format/observed"] == len(long)
    assert seen["rollout/guard/format/stopped"] == seen["rollout/guard/format/ended_valid"] == 0
    assert seen["rollout/guard/format/after"] == sum(len(rollout.tokens) - INTERVAL for rollout in long)
    for before, after in zip(observed, stopped, strict=True):
        for whole, part in zip(before.rollouts, after.rollouts, strict=True):
            assert part.tokens == whole.tokens[: INTERVAL if whole.alarms else None]
            # not to the bit: fewer rollouts are written beside it
            assert part.logprobs == pytest.approx(whole.logprobs[: len(part.tokens)], abs=1e-4)
            assert (part.finish_reason is FinishReason.GUARD) == bool(whole.alarms)
