"""`lwz evaluate preferences`: planted causes of people's choices are found again, through a real judge, after a kill too."""

from __future__ import annotations

import json

import pytest

from tests.end_to_end.evaluate_runs import check_page, judged_by, kill_when, lwz, mistake
from tests.support import planted_choices as planted
from tests.support.files import write_jsonl
from tests.support.scripted_server import KEY, Scripted, serving

PAIRS = 160
FUNCTIONS = ",".join(f"tests.support.planted_choices:{name}" for name in ("right", "long", "noise", "first", "broken"))


@pytest.fixture
def argv(tmp_path) -> list[str]:
    pairs = write_jsonl(tmp_path / "votes.jsonl", planted.rows(PAIRS, seed=3))
    return [*map(str, ("preferences", pairs, "--output", tmp_path / "out", f"reward.functions=[{FUNCTIONS}]"))]


def test_killed_and_run_again_the_report_says_which_component_is_right_which_follows_length_and_which_is_noise(
    argv, tmp_path, monkeypatch
):
    monkeypatch.setenv("LWZ_JUDGE_KEY", KEY)
    server = Scripted(planted.fond_of_the_first, delay=0.02)
    with serving(server):
        settings = [*judged_by(server, concurrency=4), "reward.judges=[{kind: pairwise, weight: 0.5}]"]
        kill_when([*argv, *settings], lambda: len(server.bodies) >= 50)
        assert lwz(*argv, *settings) == 0
        assert len(server.bodies) <= PAIRS * 2 + 16, "what was answered before the kill is not asked again"
        asked = len(server.bodies)
        assert lwz(*argv, *settings) == 0
        assert len(server.bodies) == asked
    found = json.loads((tmp_path / "out" / "preferences.json").read_text())
    standings = {name: figures["standing"] for name, figures in found["components"].items()}
    assert standings == {
        "length": "none", "format": "equal", "pairwise": "earns", "right": "earns", "long": "length", "noise": "chance",
        "first": "chance", "broken": "equal", "together": "earns",
    }  # fmt: skip
    right, long, judge = (found["components"][name] for name in ("right", "long", "pairwise"))
    assert 0.8 < right["accuracy"]["value"] < 0.9 and set(right["by"]) == {"genre"}
    assert long["longer_won"]["value"] == 1 and long["shorter_won"]["value"] == 0 == long["masked"].get("no score", 0)
    assert long["length_correlation"] > 0.9 > abs(right["length_correlation"]) + 0.5
    assert 0.4 < judge["orders"]["value"] < 0.95 and right["orders"] is None
    assert found["weights"]["pairwise"] == 0.5 and found["pairs"] == PAIRS
    assert found["components"]["broken"]["masked"] == {
        "the function gave no number": sum(k % 3 == 0 for k in range(PAIRS))
    }
    rows = [json.loads(line) for line in (tmp_path / "out" / "preferences_rows.jsonl").read_text().splitlines()]
    assert len(rows) == PAIRS and rows[0]["scores"]["length"] is None and len(rows[0]["scores"]["right"]) == 2
    said = (tmp_path / "out" / "preferences.md").read_text()
    assert "| long | 1 |" in said and "earns its weight" in said and "## By genre" in said
    check_page(tmp_path / "out" / "preferences.html")


def test_a_smaller_limit_is_part_of_a_larger_one(argv, tmp_path):
    drawn = []
    for limit in (20, 50):
        assert lwz(*argv, "--limit", limit) == 0
        rows = (tmp_path / "out" / "preferences_rows.jsonl").read_text().splitlines()
        drawn.append({json.loads(row)["id"] for row in rows})
    assert [len(ids) for ids in drawn] == [20, 50] and drawn[0] < drawn[1]


def test_a_silent_judge_ends_the_command_at_once(argv, capsys):
    settings = ["judge.url=http://127.0.0.1:9", "judge.model=m", "judge.retries=0", "reward.judges=[{kind: rubric}]"]
    assert "http://127.0.0.1:9" in mistake(capsys, *argv, *settings)
    settings = ["reward.writing.url=http://127.0.0.1:9", "reward.writing.retries=0"]
    assert "scored none of the first texts" in mistake(capsys, *argv, *settings)


@pytest.mark.parametrize(
    ("rows", "extra", "said"),
    [
        ([], [], "holds no row"),
        ([{"prompt": "p", "chosen": "a", "rejected": "a"}], [], "none of 1 rows can be used: 1 with equal replies"),
        ([{"chosen": "a", "rejected": "b"}], [], "without a request"),
        ([{"text": "a"}], [], "line 1: no known columns of a pair"),
        ([{"prompt": "p", "chosen": "a", "rejected": "b"}], ["--by", "genre"], "no pair has a text in the column 'genre'"),
        ([{"prompt": "p", "chosen": "a", "rejected": "b", "length": {"lower": 9, "upper": 2}}], [], "line 1: 'length' must"),
        ([{"prompt": "p", "chosen": "a", "rejected": "b"}], ["reward.functions=[nowhere:f]"], "cannot be imported"),
        ([{"prompt": "p", "chosen": "a", "rejected": "b"}], ["reward.judges=[{kind: rubric}]"], "judge.url"),
        ([{"prompt": "p", "chosen": "a", "rejected": "b"}], ["--tolerance", "2"], "--tolerance"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_and_settings_that_do_not_fit_are_one_line(tmp_path, capsys, rows, extra, said):
    pairs = write_jsonl(tmp_path / "votes.jsonl", rows)
    assert said in mistake(capsys, "preferences", pairs, "--output", tmp_path / "out", *extra)


def test_what_a_function_has_scored_is_kept_until_its_source_changes(argv, tmp_path, monkeypatch):
    module, calls = tmp_path / "counting_reward.py", tmp_path / "calls"
    source = f"def f(prompt, rollouts):\n    open({str(calls)!r}, 'a').write('x')\n    return [0.5, None if 'fine fine' in rollouts[1].text else 1]\n"
    module.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    argv = [*argv[:4], "reward.functions=[counting_reward:f]", "--limit", "40"]

    def counted() -> int:
        calls.unlink(missing_ok=True)
        assert lwz(*argv) == 0
        return len(calls.read_text()) if calls.exists() else 0

    assert counted() == 40
    masked = counted()
    assert 0 < masked < 40, "only pairs without a score are asked about again"
    module.write_text(f"{source}\n")
    assert counted() == 40


def test_a_file_that_is_not_there_and_an_empty_folder_are_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name in ("nothing.jsonl", "empty"):
        assert name in mistake(capsys, "preferences", tmp_path / name, "--output", tmp_path / "out")
