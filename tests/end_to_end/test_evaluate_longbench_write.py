"""`lwz evaluate longbench-write` against a judge over HTTP, killed in the middle and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_lwz.cli import common, main
from tests.end_to_end.grpo_runs import ROOT, variables
from tests.end_to_end.test_evaluate_text import check_page
from tests.scripted_server import KEY, Scripted, serving

DIMENSIONS = ("Relevance", "Accuracy", "Coherence", "Clarity", "Breadth and Depth", "Reading Experience")


@pytest.fixture
def files(tmp_path) -> list[str]:
    prompts, responses, ruler = (tmp_path / name for name in ("p.jsonl", "r.jsonl", "ruler.jsonl"))
    rows = [{"prompt": f"Task {n}", "type": "t", "length": 100 * (n + 1)} for n in range(50)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    responses.write_text("".join(json.dumps({**row, "response": "word " * 100}) + "\n" for row in rows))
    ruler.write_text("".join(json.dumps({**row, "response": "word " * 150}) + "\n" for row in rows))
    argv = [
        "longbench-write",
        "--prompts",
        prompts,
        "--responses",
        responses,
        "--ruler",
        ruler,
        "--output",
        tmp_path / "out",
    ]
    return ["evaluate", *map(str, argv)]


def answer(prompt: str, _: int) -> str:
    return "```json\n" + json.dumps(dict.fromkeys(DIMENSIONS, 4)) + "\n```"


def test_killed_and_run_again_no_reply_is_paid_twice(files, tmp_path):
    (tmp_path / "judge.txt").write_text("Judge $RESPONSE$ as an answer to $INST$.")
    server = Scripted(answer, delay=0.05)
    with serving(server):
        settings = [f"judge.url={server.url}", "judge.model=m", "judge.concurrency=2"]
        command = [sys.executable, "-m", "megatron_lwz.cli.main", *files, *settings]
        environment = variables() | {"LWZ_JUDGE_KEY": KEY}
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(server.bodies) < 20:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "out" / "longbench_write.json").exists()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
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
    assert common.run(main.dispatch, files) == 0
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
        (["--judge-prompt", __file__.replace("longbench_write", "text")], "not LongBench-Write's judge.txt"),
    ],
)
def test_mistakes_are_one_line(files, capsys, extra, said):
    assert common.run(main.dispatch, [*files, *extra]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "WARNING" not in line]
    assert len(lines) == 1 and said in lines[0], lines


def test_responses_to_other_prompts_are_refused(files, capsys):
    path = Path(files[files.index("--responses") + 1])
    path.write_text('{"id": "x", "response": "a"}\n')
    assert common.run(main.dispatch, files) == 2
    assert "'x' answers no prompt" in capsys.readouterr().err
