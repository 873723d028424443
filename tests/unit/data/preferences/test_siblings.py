"""`lwz pairs --from-run`: best and worst sibling of each group in a real journal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_lwz.cli import common, pairs
from megatron_lwz.config import save_config, validate
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.types import ComponentScore, FinishReason, Prompt, TokenDelta, WeightVersion

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
GOOD = "<think>p</think> <answer>{}</answer>"
Sibling = tuple[str, float, float, FinishReason]
"""Text, scores of length and format, end."""


def write_run(root: Path, groups: Sequence[Sequence[Sibling]]) -> Path:
    """A run folder whose group n was consumed by step n + 1."""
    root.mkdir(parents=True)
    save_config(validate({"run": {"dir": str(root)}, "grpo": {"group_size": 3}}), root / "config.yaml")
    journal = Journal(root / "journal.sqlite")
    for number, siblings in enumerate(groups):
        drafts, scores = [], []
        for index, (text, length, form, reason) in enumerate(siblings):
            draft = Draft(number, index)
            draft.reason, draft.text = reason, text
            drafts.append(draft)
            scores.append({"length": ComponentScore(length), "format": ComponentScore(form, valid=form >= 0)})
        journal.admit(GroupDraft(number, "training", Prompt(f"p{number}", f"Ask {number}."), (1,), number + 1, drafts))
        for draft in drafts:
            journal.extend(draft, 0, TokenDelta((3,), (-0.5,), WeightVersion(number)))
            journal.finish(draft)
        journal.score(number, scores)
        journal.consume([number], number + 1)
    journal.close()
    return root


@pytest.fixture
def run(tmp_path: Path) -> Path:
    a, b, c = (GOOD.format(name) for name in "abc")
    return write_run(
        tmp_path / "run",
        [
            [(a, 0.2, 1, STOP), (b, 1.0, 1, STOP), (c, 0.6, 1, STOP)],  # b over a
            [(a, 0.5, 1, STOP), (b, 0.5, 1, STOP), (c, 0.5, 1, STOP)],  # tied
            [(a, 1.0, 1, LENGTH), (b, 0.4, 1, STOP), (c, 0.3, 1, STOP)],  # the best was cut off
            [(a, 0.9, 1, STOP), ("no tags </answer> more", 0.1, 0, STOP), (c, 0.5, 1, STOP)],  # its form is its fault
            [("<think>cut", 0.9, 1, STOP), (b, 0.1, 1, STOP), (c, 0.5, 1, STOP)],  # the best is no whole reply
        ],
    )


def make(run: Path, *options: str) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    out = run.parent / "pairs"
    code = common.run(pairs.main, ["--from-run", str(run), "--out", str(out), "--held-out", "0", *options])
    if code:
        return code, [], {}
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return code, rows, json.loads((out / "report.json").read_text())


def test_the_best_sibling_is_chosen_and_the_worst_rejected(run: Path) -> None:
    _, rows, report = make(run)
    found = {row["document"]: (row["chosen"], row["rejected"]) for row in rows}
    a, b, c = (GOOD.format(name) for name in "abc")
    assert found == {"p0": (b, a), "p2": (b, c), "p3": (a, "no tags </answer> more")}
    assert rows[0]["prompt"] == "Ask 0." and rows[0]["kind"] == "siblings" and rows[0]["template"] == "think"
    assert all(row["margin"] > 0 and row["source"] == "run" for row in rows)
    counts = report["counts"]
    assert counts["groups read"] == 5 and counts["groups left out: tied"] == 1
    assert counts["rollouts left out: truncated or stopped"] == 1
    assert counts["groups left out: best reply with thinking that is cut off"] == 1
    assert report["rules"]["steps"] is None and report["rules"]["gap"] == 0


def test_one_component_a_gap_and_steps_choose(run: Path) -> None:
    _, rows, report = make(run, "--component", "length", "--gap", "0.5")
    assert {row["document"]: row["margin"] for row in rows} == {"p0": pytest.approx(0.8), "p3": pytest.approx(0.8)}
    assert report["counts"]["groups left out: gap too small"] == 1
    _, rows, _ = make(run, "--steps", "3-4")
    assert [row["document"] for row in rows] == ["p2", "p3"]


def test_masked_scores_are_no_values(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [[("a", 1.0, -1, STOP), ("b", 0.5, -1, STOP), ("c", 0.0, 1, STOP)]])
    code, _, _ = make(run, "--component", "format")
    assert code == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--component", "writing"], "--component 'writing': no component of {run}, choose one of length, format"),
        (["--steps", "9-12"], "holds no group of steps 9 to 12: wait for the run, or choose other --steps"),
        (["--steps", "x"], "'x' is no range of steps: write A-B, such as 10-20"),
        (["--gap", "-1"], "-1: must be a finite number of at least 0"),
        (["--gap", "99"], "no pair could be made"),
    ],
)
def test_a_wrong_choice_is_one_line(run: Path, options: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    assert make(run, *options)[0] == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert said.format(run=run) in error[-1]


def test_its_options_need_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--pairs", str(tmp_path), "--out", str(tmp_path), "--component", "length"]
    assert common.run(pairs.main, arguments) == 2
    assert "--component: needs --from-run" in capsys.readouterr().err
    assert common.run(pairs.main, ["--from-run", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert str(tmp_path) in capsys.readouterr().err
