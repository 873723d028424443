"""The panel of reward hacking, on a journal whose rewards follow length and repetition by construction."""

import random
import re

import pytest

from megatron_lwz.config import validate
from megatron_lwz.report import hacking
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.types import ComponentScore, FinishReason, Prompt, TokenDelta, WeightVersion

ATTACK = "<b>in</b> the heart of the city"
CONFIG = validate({"reward": {"format": {"weight": 0}}})
SIZE = 5


def write_journal(path, *, steps=8, groups=3, drop_answers=False):
    """In every group longer answers repeat more; reward `length` is the length, reward `format` falls with it."""
    rng = random.Random(0)
    journal = Journal(path)
    number = 0
    for step in range(1, steps + 1):
        for _ in range(groups):
            drafts = [Draft(number, index) for index in range(SIZE)]
            journal.admit(GroupDraft(number, "training", Prompt(f"p{number}", "Write."), (1,), step, drafts))
            for draft in drafts:
                journal.extend(draft, 0, TokenDelta((3,), (-0.5,), WeightVersion(0)))
                start = (
                    ATTACK if step > steps - 3 and draft.index == 0 else f"{letters(rng)} walks to {letters(rng)} today"
                )
                body = " ".join(letters(rng) for _ in range(20)) + " again and again it rains" * (draft.index + 1)
                draft.text = (
                    "nothing" if drop_answers else f"<think>t</think><answer># Title\n\n{start} {body}</answer>"
                )
                draft.reason = FinishReason.STOP
                journal.finish(draft)
            scores = [
                {"length": ComponentScore(float(i)), "format": ComponentScore(-float(i), valid=number % 2 == 0)}
                for i in range(SIZE)
            ]
            journal.score(number, scores)
            journal.consume([number], step)
            number += 1
    journal.close()
    return path


def letters(rng):
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6))


def table(html, number):
    rows = re.findall(r"<tr>(.*?)</tr>", re.findall(r"<table>(.*?)</table>", html, re.S)[number], re.S)
    return {cells[0]: cells[1:] for row in rows[1:] if (cells := re.findall(r"<td>(.*?)</td>", row))}


def test_rewards_that_follow_length_and_repetition_are_shown_as_such(tmp_path):
    sample = hacking.read_sample(write_journal(tmp_path / "j"), CONFIG)
    assert (sample.first, sample.last) == ((1, 2, 3), (6, 7, 8))
    html = hacking.panel(sample)
    found = table(html, 0)
    assert found["length"][:4] == ["1", "1", "1", "1"]
    assert found["format"][:4] == ["-1", "-1", "-1", "-1"]
    assert found["advantage"][:4] == ["1", "1", "1", "1"], "format weighs nothing"
    assert found["length"][4] == "–" and float(found["length"][5]) < 0, "the shortest has the stock opening"
    assert html.count("<svg") == 3
    assert table(html, 1) == {"length": ["1", "-1"], "format": ["-1", "1"], "advantage": ["1", "-1"]}


def test_stock_openings_are_listed_and_escaped(tmp_path):
    html = hacking.panel(hacking.read_sample(write_journal(tmp_path / "j"), CONFIG))
    ((text, cells),) = table(html, 2).items()
    assert text == "b in b the heart"
    assert cells[:2] == ["0.0%", "20.0%"] and float(cells[2]) < -1
    assert "<b>in" not in html


def test_a_run_that_only_began_or_wrote_no_answer_has_no_wrong_panel(tmp_path):
    assert hacking.read_sample(write_journal(tmp_path / "one", steps=1), CONFIG) is None
    html = hacking.panel(hacking.read_sample(write_journal(tmp_path / "two", steps=2, drop_answers=True), CONFIG))
    assert "No opening is shared" in html and table(html, 0)["length"] == ["–"] * 6


def test_long_runs_are_sampled(tmp_path):
    sample = hacking.read_sample(write_journal(tmp_path / "j", steps=90, groups=5), CONFIG)
    steps = {written.step for written in sample.rollouts}
    assert {1, 2, 3, 88, 89, 90} <= steps and len(steps) <= 30
    assert sum(written.step == 1 for written in sample.rollouts) == 5 * SIZE
    assert sum(written.step == 4 for written in sample.rollouts) == 4 * SIZE


@pytest.mark.parametrize(
    ("answer", "start"),
    [
        ("One two three four five six", "one two three four five"),
        ("# A title\n\n“In the heart, of the” city", "in the heart of the"),
        ("在城市的中心地带，有一座桥。", "在城市的中心地带"),
        ("Too short", ""),
        ("", ""),
    ],
)
def test_openings(answer, start):
    assert hacking.opening(answer) == start
