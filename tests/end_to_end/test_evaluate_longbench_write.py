"""`lwz evaluate longbench-write` against a judge over HTTP, killed in the middle and run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.benchmark_judge import DIMENSIONS
from tests.end_to_end.evaluate_runs import check_page, judged_by, kill_when, lwz, mistake, run
from tests.support.files import write_jsonl
from tests.support.scripted_server import KEY, Scripted, serving


@pytest.fixture
def files(tmp_path) -> list[str]:
    rows = [{"prompt": f"Task {n}", "type": "t", "length": 100 * (n + 1)} for n in range(50)]
    prompts = write_jsonl(tmp_path / "p.jsonl", rows)
    responses = write_jsonl(tmp_path / "r.jsonl", [{**row, "response": "word " * 100} for row in rows])
    ruler = write_jsonl(tmp_path / "ruler.jsonl", [{**row, "response": "word " * 150} for row in rows])
    given = ("--prompts", prompts, "--responses", responses, "--ruler", ruler, "--output", tmp_path / "out")
    return ["longbench-write", *map(str, given)]


def answer(prompt: str, _: int) -> str:
    return "```json\n" + json.dumps(dict.fromkeys(DIMENSIONS, 4)) + "\n```"


def test_killed_and_run_again_no_reply_is_paid_twice(files, tmp_path):
    (tmp_path / "judge.txt").write_text("Judge $RESPONSE$ as an answer to $INST$.")
    server = Scripted(answer, delay=0.05)
    with serving(server):
        argv = [*files, *judged_by(server, concurrency=2)]
        kill_when(argv, lambda: len(server.bodies) >= 20)
        assert not (tmp_path / "out" / "longbench_write.json").exists()
        run(argv)
    assert len(server.bodies) <= 50 + 2, "only what was under way at the kill"
    text = (tmp_path / "out" / "longbench_write.json").read_text()
    found = json.loads(text)
    assert found["metrics"]["s_q"] == {"value": 75.0, "low": 75.0, "high": 75.0, "count": 50}
    assert found["judge"]["wording"].endswith("judge.txt") and KEY not in text
    assert found["judge"]["temperature"] == 0.5 and found["judge"]["counters"]["cached"] >= 18
    assert found["ruler"][0] == {"asked": 100, "mean": 150.0, "longest": 150, "count": 1}
    assert server.bodies[0]["messages"][0]["content"].startswith("Judge word word")
    check_page(tmp_path / "out" / "longbench_write.html")


def test_without_a_judge_there_is_the_length_score(files, capsys, tmp_path):
    assert lwz(*files) == 0
    assert "S_l only" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "longbench_write.json").read_text())
    assert "s_q" not in found["metrics"] and found["metrics"]["s_l"]["count"] == 50


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["judge.url=http://127.0.0.1:9"], "judge.model"),
        (["judge.url=http://127.0.0.1:9", "judge.model=m", "judge.retries=0"], "127.0.0.1:9"),
        (["judge.urls=x"], "'judge.urls' = 'x': unknown key, did you mean 'url'?"),
        (["--judge-prompt", "/nowhere"], "/nowhere"),
        (["--ruler", "/nowhere"], "/nowhere"),
        (["--judge-prompt", __file__.replace("longbench_write", "text")], "not LongBench-Write's judge.txt"),
    ],
)
def test_mistakes_are_one_line(files, capsys, extra, said):
    assert said in mistake(capsys, *files, *extra)


def test_responses_to_other_prompts_are_refused(files, capsys):
    path = Path(files[files.index("--responses") + 1])
    path.write_text('{"id": "x", "response": "a"}\n')
    assert "'x' answers no prompt" in mistake(capsys, *files)
