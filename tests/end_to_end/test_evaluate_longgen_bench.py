"""`lwz evaluate longgen-bench`: judged over HTTP in the public words, run again, and without a judge."""

from __future__ import annotations

import json
import re

import pytest

from tests.end_to_end.evaluate_runs import check_page, judged_by, lwz, mistake
from tests.support.files import write_jsonl
from tests.support.longgen import response, row, write_dataset
from tests.support.scripted_server import KEY, Scripted, serving


@pytest.fixture
def argv(tmp_path) -> list[str]:
    dataset = write_dataset(tmp_path / "LongGenBench")
    rows = [{"prompt": row(n)["prompt"], "response": response(n, written=12, kept=("feast",))} for n in range(12)]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    return ["longgen-bench", "--dataset", str(dataset), "--responses", str(path), "--output", str(tmp_path / "out")]


def result(tmp_path):
    return json.loads((tmp_path / "out" / "longgen_bench.json").read_text())


def answer(prompt: str, _: int) -> str:
    entry, event = re.fullmatch(r"Entry: (.*)### Is (.*) in it\? Say 'yes' or 'no'\.", prompt, re.DOTALL).groups()
    return "Yes" if event in entry else "No."


def test_judged_and_run_again_no_reply_is_paid_twice(argv, tmp_path, monkeypatch):
    monkeypatch.setenv("LWZ_JUDGE_KEY", KEY)
    server = Scripted(answer)
    with serving(server):
        for _ in range(2):
            assert lwz(*argv, *judged_by(server, concurrency=8)) == 0
    # Equal entries with equal checks are one question: their week is the same in all twelve diaries.
    assert len(server.bodies) == 5 and server.bodies[0]["max_tokens"] == 50
    found = result(tmp_path)
    assert found["metrics"]["stic_1"]["value"] == pytest.approx(1 / 5)
    assert found["metrics"]["stic_2"]["value"] == pytest.approx(1 / 6) and found["decays"]["completion"]["part"] == 7
    assert found["judge"]["wording"].startswith("longgen-bench@") and KEY not in json.dumps(found)
    check_page(tmp_path / "out" / "longgen_bench.html")
    assert lwz("compare", tmp_path / "out", "--output", tmp_path / "compared") == 0


def test_without_a_judge_there_is_completion(argv, tmp_path, capsys):
    assert lwz(*argv) == 0
    assert "completion and words only" in capsys.readouterr().out
    found = result(tmp_path)["metrics"]
    assert found["completion"]["value"] == 0.75 and found["mentioned"]["value"] == pytest.approx(1 / 6)
    assert "stic_1" not in found


def test_mistakes_are_one_line(argv, tmp_path, capsys):
    other = write_jsonl(tmp_path / "o.jsonl", [{"id": "x", "response": "a"}])
    judge = ("judge.url=http://127.0.0.1:9", "judge.model=m")
    for given, said in (
        ([*argv[:3], "--responses", other, *argv[-2:]], "'x' answers no prompt of the dataset"),
        ([*argv[:2], other, *argv[3:]], "no prompt: give one of"),
        ([*argv, *judge, "--judge", "x"], "--judge names who gave"),
        ([*argv, judge[0]], "judge.model"),
        ([*argv, *judge, "--judge-prompt", __file__], "not LongGenBench's eval.py"),
    ):
        assert said in mistake(capsys, *given), given
