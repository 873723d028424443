"""`lwz evaluate hello-bench`: judged over HTTP in the public words, run again, and from judgements that exist."""

from __future__ import annotations

import json
import re

import pytest

from megatron_lwz.evaluation.hello_bench_files import read_benchmark
from tests.end_to_end.evaluate_runs import check_page, judged_by, lwz, mistake
from tests.support.files import write_jsonl
from tests.support.hello_bench import write_benchmark
from tests.support.scripted_server import KEY, Scripted, serving


@pytest.fixture
def argv(tmp_path) -> list[str]:
    copy = write_benchmark(tmp_path / "HelloBench")
    rows = [{"id": i.id, "instruction": i.instruction, "response": "word " * 9} for i in read_benchmark(copy).values()]
    files = [write_jsonl(tmp_path / f"{half}.jsonl", rows[half::2]) for half in (0, 1)]
    return ["hello-bench", "--benchmark", str(copy), "--responses", *map(str, files), "--output", str(tmp_path / "out")]


def result(tmp_path):
    return json.loads((tmp_path / "out" / "hello_bench.json").read_text())


def answer(prompt: str, _: int) -> str:
    items = int(re.search(r"(\d) items", prompt)[1])
    return json.dumps([{"checklist_id": n, "reason": "r", "evaluation_score": 0.75} for n in range(items)])


def test_judged_run_again_and_read_as_judgements(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LWZ_JUDGE_KEY", KEY)
    server = Scripted(answer)
    responses_last = [*argv[:3], *argv[6:], *argv[3:6]]
    with serving(server):
        for line in (argv, responses_last):
            assert lwz(*line, *judged_by(server, concurrency=4)) == 0
    assert len(server.bodies) == 12 and server.bodies[0]["temperature"] == 0.8
    found = result(tmp_path)
    assert [found["metrics"][name]["value"] for name in ("Overall", "chat")] == pytest.approx([0, 0], abs=1e-9)
    assert found["judge"]["answered_by"] == {"scripted-1": 12} and found["judge"]["wording"].startswith("hello-bench@")
    assert found["cut"] == "chat, heuristic_text_generation" and KEY not in json.dumps(found)
    check_page(tmp_path / "out" / "hello_bench.html")
    judgements = tmp_path / "out" / "hello_bench_judgements.jsonl"
    place = argv.index("--responses")
    scores = [*argv[:place], "--scores", str(judgements), *argv[place + 3 :]]
    capsys.readouterr()
    assert lwz(*scores, "--judge", "gpt-4o") == 0 and capsys.readouterr().err == ""
    again = result(tmp_path)
    assert again["metrics"] == found["metrics"] and again["judge"]["model"] == "gpt-4o"
    assert lwz("compare", tmp_path / "out", "--output", tmp_path / "compared") == 0
    assert "HelloBench" in (tmp_path / "compared" / "compare.html").read_text()


def test_without_a_judge_there_are_lengths(argv, tmp_path, capsys):
    assert lwz(*argv) == 0
    assert "lengths and repetition only" in capsys.readouterr().out
    assert set(result(tmp_path)["metrics"]) == {"length"}


def test_mistakes_are_one_line(argv, tmp_path, capsys):
    other = write_jsonl(tmp_path / "o.jsonl", [{"id": "x", "response": "a"}])
    head = argv[:3]
    for given, said in (
        ([*argv, "--scores", "x"], "give --responses (to be judged) or --scores"),
        ([*argv, "--judge", "x"], "--judge names who gave"),
        ([*head, "--responses", other, *argv[-2:]], "'x' answers no instruction here"),
        ([*head, "--responses", *[argv[4]] * 2, *argv[-2:]], "has several responses"),
        ([*argv[:2], str(tmp_path), *argv[3:]], "no open_ended_qa.jsonl here"),
        ([*argv, "--length", "3k"], "--length"),
        ([*argv, "judge.url=http://127.0.0.1:9"], "judge.model"),
        ([*argv, "--judge-prompt", __file__, "judge.url=http://127.0.0.1:9", "judge.model=m"], "not HelloBench's"),
    ):
        assert said in mistake(capsys, *given), given
