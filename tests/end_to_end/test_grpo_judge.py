"""GRPO with judges whose server is slow, silent, wrong, rate-limited, broken and hostile: the run goes on, all is counted."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from megatron_lwz.metrics import read_metrics
from megatron_lwz.rollout.journal_reader import JournalReader
from tests.support import stages
from tests.support.grpo_runs import BYTES, write_example
from tests.support.scripted_server import KEY, Scripted, serving

TAGGED = 200
"""Tokens that hold the answer's tag, so that a policy with random weights writes answers."""
GOOD = json.dumps({"reason": "fine", **{str(number): number + 2 for number in range(1, 7)}, "winner": "first"})


async def silent(_: int) -> str:
    await asyncio.sleep(15)
    return GOOD


async def slow(_: int) -> str:
    await asyncio.sleep(0.1)
    return GOOD


def broken(text: str, status: int = 200, **headers: str) -> web.Response:
    return web.Response(text=text, status=status, content_type="application/json", headers=headers)


BEHAVIOURS = {
    "good": (lambda _: GOOD, None),
    "slow": (slow, None),
    "silent": (silent, "timeout"),
    "rate-limited": (lambda _: broken("later", 429, **{"Retry-After": "0.05"}), "server"),
    "failing": (lambda _: broken(f"<html>{KEY}", 502), "server"),
    "refusing": (lambda _: broken(f"no: the key {KEY} may not", 400), "refused"),
    "broken": (lambda _: broken('{"choices": [{"message": '), "contract"),
    "wrong": (lambda _: '{"1": "excellent", "winner": "both"}', "malformed"),
    "hostile": (lambda _: '{"winner": ' * 3000 + "__import__('os').system('true')", "malformed"),
}
"""Name → what the server does with a question, and how a question that ends so is counted (None: it gets its verdict)."""


def behaviour_of(question: str) -> str:
    """The same for every attempt."""
    return list(BEHAVIOURS)[hashlib.sha256(question.encode()).digest()[0] % len(BEHAVIOURS)]


def write_run(folder: Path, url: str) -> Path:
    config = write_example(
        folder,
        more_ids=TAGGED,
        training={"steps": 2},
        rollout={"controller": "process"},
        data={"held_out_prompts": None},
        judge={
            **{"url": url, "model": "judge", "timeout": 5.0, "retries": 1, "backoff": 0.01, "malformed_retries": 1},
            **{"rest_after": 0, "concurrency": 8},
        },
        reward={
            "judges": [
                {"kind": "rubric", "failed": "rollout", "normalizer": "range"},
                {"kind": "pairwise", "name": "duel", "opponents": 2},
            ],
            "violators": {"share_of_spaces": 0.28},
        },
    )
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for number in range(TAGGED):
        tokenizer["model"]["vocab"][f"<answer>{number:03}"] = len(BYTES) + 1 + number
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return config


@dataclass
class Family:
    """The command lines of all processes that this test has started so far, and the tokens that they were given."""

    lines: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)

    def look(self) -> None:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                self.lines.add(" ".join(process.cmdline()))
                self.tokens.add(process.environ().get("LWZ_ENGINE_TOKEN", ""))


def places_of(secrets: Collection[str], folder: Path, said: str, family: Family) -> list[str]:
    """Where a secret can be read: in files of the folder, in what the run said, in command lines."""
    texts = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    texts |= {"its output": said.encode(), "a command line": "\n".join(sorted(family.lines)).encode()}
    return [f"{name}: {secret}" for name, text in texts.items() for secret in secrets if secret.encode() in text]


def test_a_run_goes_on_whatever_its_judge_does_counts_it_and_keeps_all_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "LWZ_JUDGE_KEY": KEY,
        "HF_TOKEN": "hf_secret_of_hugging_face",
        "LWZ_ENGINE_TOKEN": "token-of-other-engines",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    family = Family()

    def answer(question: str, number: int) -> Any:
        if number == 0:
            family.look()
        return BEHAVIOURS[behaviour_of(question)][0](number)

    server = Scripted(answer)
    with serving(server):
        config = write_run(tmp_path, server.url)
        # by the real command line, of the rollout process and the engine, too: the process table shows them
        done = stages.run("train_grpo", str(config), real=True, timeout=900.0)
    assert done.returncode == 0, done.stderr[-6000:]
    run = tmp_path / "run"
    assert (
        sum(f"megatron_lwz.cli.{name}" in line for line in family.lines for name in ("train_grpo", "serve_engine")) >= 2
    )
    secrets = {*given.values(), *family.tokens} - {""}
    assert len(secrets) == 4, "the engine of the run has a token of its own"
    assert not places_of(secrets, tmp_path, done.stdout + done.stderr, family)
    assert "the key *** may not" in done.stderr, "what the judge said is shown, without the key that it quotes"
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2] and all(row["grad_norm"] > 0 for row in rows)

    questions = {body["messages"][-1]["content"] for body in server.bodies}
    expected = Counter(BEHAVIOURS[behaviour_of(question)][1] for question in questions)
    assert len(questions) > 30 and set(expected) == {None, "timeout", "server", "refused", "contract", "malformed"}
    last = rows[-1]
    assert last["judge/total_asked"] == len(questions) and last["judge/total_answered"] == expected.pop(None)
    failed = {key: value for key, value in last.items() if key.startswith("judge/total_failed/") and value}
    assert failed == {f"judge/total_failed/{kind}": count for kind, count in expected.items()}

    with JournalReader(run / "journal.sqlite") as journal:
        groups = list(journal.groups())
    scores = [row["rubric"] for group in groups for row in group.scores]
    valid = [score for score in scores if score.valid]
    assert len(scores) == 16 and 0 < len(valid) < 16
    judged = [score for score in valid if score.version != "no-answer"]
    assert judged and {score.version for score in judged} == {"scripted-1/lwz-rubric-en-1"}
    assert all(score.value == pytest.approx(4.5 / 9) and score.reasons == (("", "fine"),) for score in judged)
    duels = [{row["duel"].valid for row in group.scores} for group in groups]
    assert all(len(flags) == 1 for flags in duels), "a failed pair masks its whole group"
    assert sum(row["rollout/masked_groups/duel"] for row in rows) == duels.count({False}) > 0
    assert all(0 < row["rollout/violators"] < 1 and row["gradient/violators"] > 0 for row in rows)
    page = (run / "report.html").read_text()
    assert "Rewards at work" in page and "<td>failed/timeout</td>" in page
