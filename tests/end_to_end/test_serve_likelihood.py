"""`lwz serve-reward --likelihood` for real: likelihoods equal to transformers', and a GRPO run that starts it and trains on them."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch

from megatron_lwz.cli import common, serve_reward
from megatron_lwz.config.sections import ContinuationReward
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.http.ports import free_port
from megatron_lwz.http.process import ServerProcess
from megatron_lwz.metrics import read_metrics
from megatron_lwz.rewards.continuation import ContinuationComponent
from megatron_lwz.rewards.continued_text import context
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.types import Prompt
from tests.support import warm
from tests.support.engine_model import write_engine_model
from tests.support.engine_reward_model import write_reward_model
from tests.support.grpo_runs import train, write_example
from tests.support.scoring import rollout
from tests.support.stages import variables

TOKEN = "secret"
REQUEST = "The storm reached the harbour."
CONTINUATION = "By morning the boats were gone, and w300 w301 lay on the sand."
PLAN = "boats, sand, w300"


class Served:
    """A running server and transformers' model of the same folder."""

    def __init__(self, url: str, tokenizer: Tokenizer, model: Any) -> None:
        self.url, self.tokenizer, self.model = url, tokenizer, model

    def post(self, body: Any) -> tuple[int, Any]:
        async def ask() -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.post(f"{self.url}/likelihood", json=body) as response,
            ):
                return response.status, await response.json()

        return asyncio.run(ask())

    def expected(self, continuation: str, written: str = "", longest: int | None = None) -> float:
        before = self.tokenizer.encode(context("text", REQUEST, written))
        after = self.tokenizer.encode(continuation)[:longest]
        with torch.no_grad():
            logits = self.model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        return float(logits.log_softmax(-1).gather(1, torch.tensor(after)[:, None]).mean())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served_likelihood")
    model = write_engine_model(folder, max_length=1024)
    port = free_port()
    options = [
        "--model",
        str(folder),
        "--port",
        str(port),
        "--threads",
        "1",
        "--tokens-per-batch",
        "600",
        "--likelihood",
    ]
    server = ServerProcess(
        [sys.executable, "-m", "megatron_lwz.cli.serve_reward", *options],
        url=f"http://127.0.0.1:{port}",
        token=TOKEN,
        env=variables() | {"LWZ_REWARD_TOKEN": TOKEN},
        log_path=folder / "server.log",
    )
    with warm.forking():
        server.start()
    try:
        server.wait_ready()
        yield Served(server.url, Tokenizer(folder), model)
    finally:
        server.stop()


def test_likelihoods_are_those_of_transformers_whatever_they_are_packed_with(served: Served) -> None:
    plans = ["", *(f"{PLAN} {'w302 ' * (n * n % 37)}" for n in range(12))]
    items = [{"prompt": REQUEST, "continuation": CONTINUATION, "written": plan} for plan in plans]
    status, answer = served.post({"items": items})
    assert status == 200 and answer["errors"] == {}
    assert answer["scores"] == pytest.approx([served.expected(CONTINUATION, plan) for plan in plans], abs=1e-4)
    status, answer = served.post({"items": items[:2], "longest": 7})
    assert answer["scores"] == pytest.approx([served.expected(CONTINUATION, p, 7) for p in plans[:2]], abs=1e-4)
    assert answer["tokens"] == [len(served.tokenizer.encode(context("text", REQUEST, plan))) + 7 for plan in plans[:2]]


def test_what_has_no_likelihood_has_a_reason_and_bad_requests_are_refused(served: Served) -> None:
    items = [{"prompt": REQUEST, "continuation": text} for text in ("fine", "", "x" * 2000)]
    status, answer = served.post({"items": items})
    assert status == 200 and [score is None for score in answer["scores"]] == [False, True, True]
    assert answer["errors"]["1"] == "empty" and answer["errors"]["2"].endswith("tokens, at most 1024")
    for body, words in (
        ({}, 'needs a list "items"'),
        ({"items": [{"prompt": "p"}]}, 'item 0: needs the strings "prompt" and "continuation"'),
        ({"items": [{"prompt": "p", "continuation": "c", "written": 3}]}, '"written" must be a string'),
        ({"items": [], "longest": 0}, '"longest" must be'),
        ({"items": [{}] * 4097}, "at most 4096"),
    ):
        status, answer = served.post(body)
        assert status == 400 and words in answer["error"]["message"]


def test_the_component_rewards_what_lowers_the_perplexity(served: Served) -> None:
    plans = [PLAN, "nothing of the kind", ""]

    async def ask() -> Any:
        section = ContinuationReward(url=served.url, score="percent")
        async with ContinuationComponent(section, TOKEN) as component:
            row = Prompt("p", REQUEST, extra={"continuation": CONTINUATION})
            return await component.score(row, [rollout(f"<think>{plan}</think><answer>a</answer>") for plan in plans])

    scores = asyncio.run(ask())
    base = served.expected(CONTINUATION)
    for plan, score in zip(plans[:2], scores, strict=False):
        ratio = math.exp(-served.expected(CONTINUATION, plan)) / math.exp(-base)
        assert score.valid and score.value == pytest.approx(max(-100, 100 * (1 - ratio)), abs=0.05)
    assert scores[2].value == 0 and scores[0].details["without"] == pytest.approx(base, abs=1e-4)


def test_a_model_or_option_of_the_other_kind_is_refused_in_one_line(tmp_path: Path, capsys: Any) -> None:
    write_reward_model(tmp_path)
    for options, words in (
        (["--likelihood"], "of a reward model, not of a language model"),
        (["--likelihood", "--template", "markers"], "no meaning with --likelihood"),
        (["--template", "text"], "no meaning without --likelihood"),
    ):
        assert common.run(serve_reward.main, ["--model", str(tmp_path), "--port", "0", *options]) == 2
        assert words in capsys.readouterr().err


def test_a_run_starts_the_server_and_trains_on_its_likelihoods(tmp_path: Path) -> None:
    write_engine_model(tmp_path / "frozen", max_length=1024)
    config = write_example(
        tmp_path,
        words=[f"<answer>{number}" for number in range(60)],  # a random policy writes answers
        reward={
            "length": {"weight": 0}, "format": {"weight": 0}, "functions": [],
            "continuation": {"hf": str(tmp_path / "frozen"), "reads": "answer", "score": "nats", "longest": 8},
        },
        data={"prompt_template": "direct", "held_out_prompts": None},
        training={"steps": 1},
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"continuation": CONTINUATION} if row["id"] != "p0" else row) for row in rows]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    train(config)
    (row,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    with JournalReader(tmp_path / "run" / "journal.sqlite") as journal:
        groups = list(journal.groups(consumed_at=1))
    scores = {group.prompt.id: [scored["continuation"] for scored in group.scores] for group in groups}
    assert all(score.valid is (name != "p0") for name, column in scores.items() for score in column)
    measured = [score for column in scores.values() for score in column if score.valid and score.value != 0]
    assert len(measured) >= 3 and all(score.value == score.details["nats"] for score in measured)
    assert (
        row["rollout/continuation_gain"] != 0
        and row["gradient/continuation"] == pytest.approx(1)
        and row["grad_norm"] > 0
    )
    assert row["continuation/scored"] == len(measured) + len(scores) - ("p0" in scores), "one baseline for each prompt"
