"""`lwz evaluate constory`: judged over HTTP in the public words, run again, read as an evaluation, and by rules alone."""

from __future__ import annotations

import json

import pytest

from tests.end_to_end.evaluate_runs import check_page, judged_by, lwz, mistake
from tests.support.constory import EYES, prompts, story, write_evaluation, write_questions
from tests.support.files import write_jsonl
from tests.support.scripted_server import KEY, Scripted, serving


@pytest.fixture
def argv(tmp_path) -> list[str]:
    given = write_jsonl(tmp_path / "prompts.jsonl", prompts())
    stories = [{"id": n, "response": story(n, faulty=n % 2 == 0)} for n in range(12)]
    responses = write_jsonl(tmp_path / "r.jsonl", stories)
    return ["constory", "--prompts", str(given), "--responses", str(responses), "--output", str(tmp_path / "out")]


def result(tmp_path):
    return json.loads((tmp_path / "out" / "constory.json").read_text())


def answer(prompt: str, _: int) -> str:
    if "Find factual_detail" in prompt and "her brown eyes" in prompt:
        return json.dumps({"appearance_mismatches": [EYES]})
    return json.dumps({"appearance_mismatches": [], "memory_contradictions": [], "style_shifts": []} | {
        "causeless_effects": [], "core_rules_violations": []
    })  # fmt: skip


def test_checked_run_again_and_read_as_an_evaluation(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LWZ_JUDGE_KEY", KEY)
    server = Scripted(answer)
    copy = ("--benchmark", write_questions(tmp_path / "copy"))
    with serving(server):
        for _ in range(2):
            assert lwz(*argv, *copy, *judged_by(server, concurrency=8)) == 0
    assert len(server.bodies) == 60 and server.bodies[0]["max_tokens"] == 10_000
    found = result(tmp_path)
    assert found["metrics"]["ced"]["value"] == pytest.approx(50) and found["metrics"]["quoted"]["value"] == 1
    assert found["metrics"]["ced, generation"]["value"] == pytest.approx(100) and KEY not in json.dumps(found)
    assert "constory@" in found["judge"]["wording"] and found["missing"] == 0
    check_page(tmp_path / "out" / "constory.html")
    evaluation = ("--evaluation", tmp_path / "out" / "constory_evaluation.csv", "--output", tmp_path / "again")
    capsys.readouterr()
    assert lwz("constory", *evaluation) == 0 and capsys.readouterr().err == ""
    again = json.loads((tmp_path / "again" / "constory.json").read_text())
    assert again["metrics"] == found["metrics"] and again["judge"]["model"] == "m (answered by scripted-1)"
    assert lwz("compare", tmp_path / "out", tmp_path / "again", "--output", tmp_path / "compared") == 0


def test_without_a_judge_there_is_what_rules_find(argv, tmp_path, capsys):
    assert lwz(*argv) == 0
    assert "what rules find only" in capsys.readouterr().out
    assert set(result(tmp_path)["metrics"]) == {"rules", "length"}


def test_mistakes_are_one_line(argv, tmp_path, capsys):
    public = write_evaluation(
        tmp_path / "m1.csv", [{"id": 0, "story": "a", "world_building_core_rules_violations": "x"}]
    )
    other = write_jsonl(tmp_path / "o.jsonl", [{"id": 99, "response": "a"}])
    judge, out = ("judge.url=http://127.0.0.1:9", "judge.model=m"), ("--output", tmp_path / "o")
    for given, said in (
        (["constory", *out], "give --responses (to be checked) or --evaluation"),
        (["constory", "--responses", other, *out], "needs --prompts"),
        ([*argv[:3], "--responses", other, *out], "'99' answers no prompt of the file"),
        (
            ["constory", "--evaluation", public, *out],
            "line 2: 'world_building_core_rules_violations' holds no JSON list",
        ),
        ([*argv, "--judge", "x"], "--judge names who made"),
        ([*argv, judge[0]], "judge.model"),
        ([*argv, *judge, "--benchmark", tmp_path], "no characterization.md here"),
        ([*argv, "--model", "x"], "leave --model away"),
    ):
        assert said in mistake(capsys, *given), given
