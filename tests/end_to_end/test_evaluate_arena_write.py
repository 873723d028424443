"""`lwz evaluate arena-write`: a judge with planted preferences over HTTP, killed in the middle and run again."""

from __future__ import annotations

import json

import pytest

from tests.end_to_end.evaluate_runs import check_page, judged_by, kill_when, mistake, run
from tests.support.files import write_jsonl
from tests.support.planted_judge import planted
from tests.support.scripted_server import Scripted, serving

PROMPTS = 40


@pytest.fixture
def argv(tmp_path) -> list[str]:
    rows = [{"idx": n, "question": f"Task {n}", "type": "t", "length": 200} for n in range(PROMPTS)]
    for name in ("strong", "weak", "baseline"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"idx": n, "response": f"{name} writes {n}"} for n in range(PROMPTS)])
    given = [{**row, "baseline_response": {"baseline": f"baseline writes {row['idx']}"}} for row in rows]
    prompts = write_jsonl(tmp_path / "arena.jsonl", given)
    responses = ("--responses", tmp_path / "strong.jsonl", "--responses", f"weak={tmp_path}/weak.jsonl")
    return [*map(str, ("arena-write", "--prompts", prompts, *responses, "--output", tmp_path / "out"))]


def test_killed_and_run_again_no_reply_is_paid_twice(argv, tmp_path):
    server = Scripted(planted, delay=0.02)
    with serving(server):
        settings = judged_by(server, concurrency=4)
        kill_when([*argv, *settings], lambda: len(server.bodies) >= 50)
        run([*argv, *settings])
    assert len(server.bodies) <= PROMPTS * 2 * 2 + 4
    found = json.loads((tmp_path / "out" / "arena_write.json").read_text())
    assert found["name"] == "strong" and found["anchor"] == "baseline" and found["games"] == PROMPTS * 4
    assert list(found["elo"]) == ["strong", "baseline", "weak"] and found["metrics"]["Elo"] == found["elo"]["strong"]
    assert found["bias"]["first_place_elo"]["low"] > 0
    games = [json.loads(line) for line in (tmp_path / "out" / "arena_write_games.jsonl").read_text().splitlines()]
    assert len({(g["prompt"], g["first"], g["second"]) for g in games}) == len(games) == PROMPTS * 4
    check_page(tmp_path / "out" / "arena_write.html")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--anchor", "nobody"], "--anchor nobody: no such player; there are strong, weak, baseline"),
        (["--baseline", "strong=x"], "a player named 'strong' already"),
        ([], "judge.url"),
        (["judge.urls=x"], "unknown key"),
        (["--repeats", "0"], "must be at least 1"),
    ],
)
def test_mistakes_are_one_line(argv, capsys, extra, said):
    assert said in mistake(capsys, *argv, *extra)
