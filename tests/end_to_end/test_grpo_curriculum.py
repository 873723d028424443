"""GRPO whose judge's criteria grow harder, killed in the middle: what comes after is judged as if nothing had happened."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from megatron_lwz.metrics import read_metrics
from megatron_lwz.rollout.journal_reader import JournalReader
from tests.support import stages
from tests.support.grpo_runs import BYTES, write_example
from tests.support.scripted_server import KEY, Scripted, serving
from tests.support.waiting import wait_for

pytestmark = pytest.mark.long

TAGGED = 200
"""Tokens that hold the answer's tag, so that a policy with random weights writes answers."""


def editor(question: str, number: int) -> str:
    """Every text meets the first criterion and none the second; no list is written twice alike."""
    if '"criteria"' not in question:
        return json.dumps({"reason": "fine", "1": 9, "2": 3 + number % 4})
    harder = "tell nothing apart" in question
    return json.dumps({"criteria": [f"harder {number}"] if harder else [f"first {number}", "second"]})


def write_run(folder: Path, url: str) -> Path:
    config = write_example(
        folder,
        more_ids=TAGGED,
        training={"steps": 6},
        checkpoint={"interval": 1},
        evaluation={"interval": 3, "concurrent": False},
        judge={"url": url, "model": "judge", "backoff": 0.01},
        reward={"judges": [{"kind": "criteria", "rounds": 3}]},
    )
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for number in range(TAGGED):
        tokenizer["model"]["vocab"][f"<answer>{number:03}"] = len(BYTES) + 1 + number
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return config


def test_a_prompts_criteria_go_on_from_round_to_round_also_across_a_kill(tmp_path, monkeypatch):
    monkeypatch.setenv("LWZ_JUDGE_KEY", KEY)
    metrics = tmp_path / "run" / "metrics.jsonl"
    server = Scripted(editor)
    with serving(server):
        config = write_run(tmp_path, server.url)
        process = stages.start("train_grpo", str(config))
        wait_for(
            lambda: metrics.is_file() and len(metrics.read_text().splitlines()) >= 3,
            seconds=600,
            process=process,
            what="three steps before the kill",
        )
        stages.kill(process)
        done = stages.run("train_grpo", str(config), timeout=900.0)
    assert done.returncode == 0, done.stderr[-6000:]
    rows = read_metrics(metrics)
    assert [row["step"] for row in rows] == list(range(1, 7)) and rows[-1]["judge/total_replaced/criteria"] > 0
    visits: dict[str, list[tuple[float, str]]] = {}
    with JournalReader(tmp_path / "run" / "journal.sqlite") as journal:
        for group in journal.groups():
            scores = [row["criteria"] for row in group.scores]
            judged = [score for score in scores if score.version != "no-answer"]
            assert all(score.valid for score in scores) and len({score.version for score in judged}) == 1
            said = {score.reasons[1][1] for score in judged}
            assert len(said) == 1, "one list for all siblings"
            visits.setdefault(group.prompt.id, []).append((judged[0].details["round"], said.pop()))
    for rounds in visits.values():
        assert rounds[0][0] == 0 and rounds[0][1].startswith("first")
        for (before, told), (after, tells) in pairwise(rounds):  # a group with an empty answer replaces nothing
            assert after in (before, before + 1) and (told == tells) == (before == after), rounds
    assert max(rounds[-1][0] for rounds in visits.values()) >= 2
