"""`lwz evaluate writing-bench`: judged over HTTP, in the public copy's words, killed and run again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from megatron_lwz.evaluation.compare import read_run
from tests.end_to_end.evaluate_runs import check_page, judged_by, kill_when, lwz, mistake, run
from tests.support.files import write_jsonl
from tests.support.scripted_server import Scripted, serving
from tests.support.writing_bench import PUBLIC, write_benchmark

PROMPT = '''evaluate_system = """You judge."""
evaluate_prompt = """Criteria {criteria} Query {query} Response {response} {{"score": n}}"""
'''


@pytest.fixture
def argv(tmp_path) -> list[str]:
    benchmark = write_benchmark(tmp_path / "WritingBench")
    rows = [
        {"index": query["index"], "response": f"<think>a</think>\nAnswer {query['index']}"}
        for query in PUBLIC["queries"]
    ]
    responses = write_jsonl(tmp_path / "model.jsonl", rows)
    options = ["--benchmark", benchmark, "--responses", responses, "--output", tmp_path / "out"]
    return ["writing-bench", *map(str, options)]


def test_killed_and_run_again_no_reply_is_paid_twice_and_no_row_counted_twice(argv, tmp_path):
    (tmp_path / "WritingBench" / "prompt.py").write_text(PROMPT)
    server = Scripted(lambda prompt, _: '```json\n{"score": 8, "reason": "says "yes", well"}\n```', delay=0.02)
    with serving(server):
        settings = judged_by(server, concurrency=4)
        kill_when([*argv, *settings], lambda: len(server.bodies) >= 50)
        run([*argv, *settings])
    assert len(server.bodies) <= 150 + 4
    body = server.bodies[0]
    first = PUBLIC["queries"][0]
    assert body["messages"][1]["content"] == (
        f'Criteria {first["checklist"][0]} Query {first["query"]} Response Answer 1 {{"score": n}}'
    ), "as the public script formats it, the thinking cut off after a single line break"
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (1.0, 0.95, 2048)
    found = json.loads((tmp_path / "out" / "writing_bench.json").read_text())
    assert found["metrics"]["Overall"] == {"value": 8.0, "low": 8.0, "high": 8.0, "count": 150}
    assert (found["era"], found["queries"], found["missing"], found["incomplete"]) == ("2025-04", 30, 0, [])
    assert "prompt.py" in found["wording"] and found["judge"]["answered_by"] == {"scripted-1": 150}
    page = (tmp_path / "out" / "writing_bench.html").read_text()
    assert "WritingBench of 2025-04, judged by m (answered by scripted-1)" in page
    assert "never judged the public leaderboard" in page
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores" / "model.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(1, 31))
    check_page(tmp_path / "out" / "writing_bench.html")
    found = read_run(tmp_path / "out")
    assert set(next(iter(found.values.values()))) == {str(index) for index in range(1, 31)}, "compare pairs by query"


def test_scores_of_the_public_script_are_aggregated(argv, tmp_path, capsys):
    scores = write_jsonl(tmp_path / "theirs.jsonl", [*PUBLIC["scores"], PUBLIC["scores"][-1]])
    place = argv.index("--responses")
    assert lwz(*argv[:place], "--scores", scores, *argv[place + 2 :]) == 0
    said = capsys.readouterr().err
    assert "1 rows were scored twice" in said and "does not say who judged" in said
    assert lwz(*argv[:place], "--scores", scores, *argv[place + 2 :], "--judge", "claude-sonnet-4") == 0
    assert "who judged" not in capsys.readouterr().err
    page = (tmp_path / "out" / "writing_bench.html").read_text()
    assert "judged the public leaderboard from 2025-09-05 to 2025-11-27" in page
    (row,) = csv.DictReader((tmp_path / "out" / "writing_bench.csv").open())
    assert row["Model"] == "theirs" and int(row["Count"]) == 28
    assert (row["Era"], row["Judge"]) == ("2025-04", "claude-sonnet-4")
    for name, value in PUBLIC["expected"].items():
        assert float(row[name]) == pytest.approx(value)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--scores", "x"], "give --responses (to be judged) or --scores"),
        ([], "judge.url"),
        (["judge.urls=x"], "unknown key"),
        (["--judge", "x"], "--judge names who gave the scores"),
        (["--judge-prompt", "/nowhere/prompt.py"], "/nowhere/prompt.py"),
    ],
)
def test_mistakes_are_one_line(argv, capsys, extra, said):
    assert said in mistake(capsys, *argv, *extra)


def test_responses_to_the_other_era_are_refused(argv, capsys):
    write_jsonl(Path(argv[argv.index("--responses") + 1]), [{"index": 1000, "response": "a"}])
    assert "'1000' answers no query of 2025-04" in mistake(capsys, *argv)
