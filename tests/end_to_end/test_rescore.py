"""`lwz rescore` on a real journal, written as a run writes it: what changes is what must change."""

import csv
import json
import math
import shutil

import pytest
import torch

from megatron_lwz.algorithms.advantages import component_advantages
from megatron_lwz.cli import common
from megatron_lwz.cli.main import dispatch
from megatron_lwz.config import save_config, validate
from megatron_lwz.evaluation.statistics import rank_correlation
from megatron_lwz.rewards.composite import build_rewards
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.types import ComponentScore, FinishReason, LengthRange, Prompt, TokenDelta, WeightVersion
from tests.support.scoring import score

WORDS = (40, 100, 140, 200, 260, 320)
"""Answer lengths in every group; 80 to 120 are asked for."""


def text(number, words):
    answer = " ".join(f"word{'abcdefghij'[(number + i) % 10]}" if i % 7 else "\nline" for i in range(words))
    return f"<think>t</think><answer>{answer}</answer>" if words != 140 else f"<answer>{answer}</answer>"


def write_run(root, groups=4, *, reward=None):
    """A run folder with `groups` groups, two per step; the last one is not consumed, one rollout of each is truncated."""
    tree = {"run": {"dir": str(root)}, "reward": {"length": {"maximum": 400}, **(reward or {})}}
    config = validate(tree)
    root.mkdir()
    save_config(config, root / "config.yaml")
    rewards = build_rewards(config.reward)
    journal = Journal(root / "journal.sqlite")
    for number in range(groups):
        prompt = Prompt(
            f"p{number}", "Write.", LengthRange(80, 120), extra={"structure": {"lists": {"lower": 1, "upper": 2}}}
        )
        drafts = [Draft(number, index) for index in range(len(WORDS))]
        journal.admit(GroupDraft(number, "training", prompt, (1, 2), number // 2 + 1, drafts))
        for draft, words in zip(drafts, WORDS, strict=True):
            delta = TokenDelta((3, 4), (-0.5, -0.25), WeightVersion(0))
            journal.extend(draft, 0, delta)
            draft.extend(delta)
            draft.reason = FinishReason.LENGTH if words == 320 else FinishReason.STOP
            draft.text = text(number, words)
            journal.finish(draft)
        group = GroupDraft(number, "training", prompt, (1, 2), number // 2 + 1, drafts)
        rollouts = [group.rollout(draft) for draft in drafts]
        columns = {reward.name: score(reward, prompt, *rollouts) for reward in rewards}
        columns["extra"] = [ComponentScore(0.5)] * len(drafts)  # a component that no config knows any more
        journal.score(number, [{name: column[i] for name, column in columns.items()} for i in range(len(drafts))])
        if number < groups - 1:
            journal.consume([number], number // 2 + 1)
    journal.commit()
    return journal


@pytest.fixture
def run(tmp_path):
    journal = write_run(tmp_path / "run")
    journal.close()
    return tmp_path / "run"


def rescore(run, *arguments):
    """The JSON and the CSV rows."""
    target = run.parent
    dispatch(["rescore", str(run), *arguments, "--json", str(target / "r.json"), "--csv", str(target / "r.csv")])
    with (target / "r.csv").open(encoding="utf-8", newline="") as stream:
        return json.loads((target / "r.json").read_text(encoding="utf-8")), list(csv.DictReader(stream))


def by_name(summary):
    return {row["name"]: row for row in summary["components"]}


@pytest.mark.parametrize("again", [(), ("--recompute",)])
def test_the_same_config_changes_nothing(run, again):
    summary, rows = rescore(run, *again)
    assert (summary["groups"], summary["rollouts"], summary["steps"]) == (4, 24, [1, 2])
    assert {row["source"] for row in summary["components"]} == ({"computed"} if again else {"stored"})
    assert all(row["changed"] == 0 and row["rank_correlation"] == pytest.approx(1) for row in summary["components"])
    found = summary["advantages"]
    assert (found["best_changes"], found["sign_changes"], found["mean_difference"]) == (0, 0, 0)
    assert all(row["old_advantage"] == row["new_advantage"] for row in rows)


def test_the_advantages_are_those_of_the_trainer(run):
    _, rows = rescore(run, "reward.format.weight=3", "reward.normalizer=range", "grpo.truncated=keep")
    for number in range(4):
        group = [row for row in rows if int(row["group"]) == number]
        scores = torch.tensor([[[float(r["new_length"]), float(r["new_format"])] for r in group]])
        expected = component_advantages(
            scores, torch.ones_like(scores, dtype=torch.bool), torch.ones(1, len(group), dtype=torch.bool),
            weights=torch.tensor([1.0, 3.0]), normalizer="range", combine="advantages", std_floor=1e-6,
        ).sum(-1)  # fmt: skip
        assert [float(r["new_advantage"]) for r in group] == pytest.approx(expected[0].tolist())
        assert float(group[-1]["old_advantage"]) == 0, "truncated, and masked under the run's own config"


def test_another_length_reward_is_computed_from_the_texts(run):
    summary, rows = rescore(run, "reward.length.maximum=1000", "reward.length.under_power=2")
    assert {name: row["source"] for name, row in by_name(summary).items()} == {"length": "computed", "format": "stored"}
    for row in rows:
        words = int(row["length"])
        expected = (words / 80) ** 2 if words < 80 else 1.0 if words <= 120 else (1000 - words) / 880
        assert float(row["new_length"]) == pytest.approx(expected)
    assert by_name(summary)["length"]["changed"] == pytest.approx(5 / 6)
    buckets = summary["lengths"]
    assert sum(bucket["rollouts"] for bucket in buckets) == 24
    assert buckets[0]["components"]["length"]["new"] < buckets[0]["components"]["length"]["old"]


def test_groups_whose_best_rollout_changes_are_named(run):
    summary, _ = rescore(run, "reward.length.maximum=100000", "reward.format.weight=0", "grpo.truncated=keep")
    assert summary["advantages"]["best_changes"] == 0, "the range is still the best"
    summary, _ = rescore(run, "reward.length.weight=0", "reward.structure.checks=[asked]", "reward.format.weight=0")
    found = by_name(summary)
    assert (found["structure"]["source"], found["structure"]["mean_old"], found["structure"]["weight_new"]) == (
        "computed",
        None,
        1,
    )
    assert summary["advantages"]["silent_groups_new"] == 4, "none has a list: nothing to learn"
    summary, _ = rescore(run, "reward.functions=[tests.support.scoring:longest]", "reward.length.weight=0",
                         "reward.format.weight=0", "grpo.truncated=keep")  # fmt: skip
    assert summary["advantages"]["best_changes"] == 4
    assert summary["advantages"]["groups_whose_best_changes"] == [0, 1, 2, 3]


def test_advantages_may_be_a_function_of_the_users_in_either_config(run, tmp_path):
    function = "reward.advantage_function=tests.support.user_advantages:"
    summary, rows = rescore(run, function + "builtin")
    assert all(float(row["old_advantage"]) == pytest.approx(float(row["new_advantage"]), abs=1e-6) for row in rows)
    assert all(row["share_new"] == pytest.approx(row["share_old"]) for row in summary["components"])
    summary, rows = rescore(run, function + "of_length_alone", "reward.structure.checks=[asked]")
    assert {row["share_new"] for row in summary["components"]} == {None}, "one number for all components"
    assert by_name(summary)["structure"]["source"] == "computed"
    whole = [float(row["new_length"]) for row in rows if row["group"] == "0"]
    assert float(rows[0]["new_advantage"]) == pytest.approx(whole[0] - sum(whole) / len(whole))
    other = tmp_path / "other"
    write_run(other, reward={"advantage_function": "tests.support.user_advantages:of_length_alone"}).close()
    _, again = rescore(other, "reward.advantage_function=null")
    assert [row["old_advantage"] for row in again] == [row["new_advantage"] for row in rows]
    assert [row["new_advantage"] for row in again] == [row["old_advantage"] for row in rows]


def test_another_yaml_steps_and_limit(run, tmp_path):
    (tmp_path / "other.yaml").write_text(
        "reward:\n  length: {shape: longbench}\ntraining: {steps: 7}\n", encoding="utf-8"
    )
    summary, rows = rescore(run, "--config", str(tmp_path / "other.yaml"), "--steps", "1-1")
    assert (summary["groups"], summary["steps"]) == (2, [1, 1])
    assert float(rows[3]["new_length"]) == pytest.approx(1 - (200 / 120 - 1) / 3)
    summary, rows = rescore(run, "--limit", "1")
    assert (summary["groups"], summary["steps"], rows[0]["step"]) == (1, None, "")


def test_servers_are_asked_only_when_told_to(run, capsys):
    judged = ["reward.judges=[{kind: rubric}]", "judge.url=http://127.0.0.1:9", "judge.model=m"]
    summary, _ = rescore(run, *judged)
    assert by_name(summary)["rubric"]["source"] == "absent"
    assert by_name(summary)["rubric"]["masked_new"] == 24
    assert "not asked again" in capsys.readouterr().out
    summary, _ = rescore(run, *judged, "--ask", "judge.retries=0", "--limit", "1")
    assert by_name(summary)["rubric"]["source"] == "asked"
    assert by_name(summary)["rubric"]["masked_new"] == 6, "nobody answers there"


def test_it_works_while_the_run_goes_on_and_writes_nothing(tmp_path):
    journal = write_run(tmp_path / "run")
    before = (tmp_path / "run" / "journal.sqlite").read_bytes()
    listed = sorted(path.name for path in (tmp_path / "run").iterdir())
    summary, _ = rescore(tmp_path / "run", "reward.length.maximum=1000")
    assert summary["groups"] == 4
    assert (tmp_path / "run" / "journal.sqlite").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == listed
    journal.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["training.steps=3"], "rescore changes only reward, judge and grpo"),
        (["reward.length.maximum=100"], "must be larger than the 120"),
        (["reward.lenght.maximum=100"], "did you mean 'length'"),
        (["reward.violators={nothing: 0.5}"], "is no component"),
        (["reward.advantage_function=no_such_module:f"], "reward.advantage_function' = 'no_such_module:f': cannot be"),
        (["--steps", "90-99"], "no group of steps 90 to 99"),
        (["--steps", "x"], "--steps"),
        (["--csv", "/nonexistent/r.csv"], "there is no folder /nonexistent"),
        (["reward.writing.hf=/nowhere", "--ask"], "reward.writing.url"),
        (["--config", "/nonexistent.yaml"], "cannot be read"),
    ],
)
def test_mistakes_are_one_line(run, capsys, arguments, said):
    assert common.run(dispatch, ["rescore", str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_folder_without_a_journal_is_named(run, capsys):
    shutil.move(run / "journal.sqlite", run / "gone")
    assert common.run(dispatch, ["rescore", str(run)]) == 2
    assert "no journal there" in capsys.readouterr().err


def test_rank_correlation_is_spearmans():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 25, 99]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(math.sqrt(0.9))
    assert rank_correlation([1, 1], [1, 2]) is None and rank_correlation([1], [1]) is None
