"""`lwz serve-reward` for real: scores equal to transformers', refusals, a token, many at once, long texts."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch

from megatron_lwz.cli import common, serve_reward
from megatron_lwz.config.sections import WritingReward
from megatron_lwz.data.preferences.rendering import Rendering, Reply
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.distributed import environment, launch
from megatron_lwz.http.ports import free_port
from megatron_lwz.http.process import ServerProcess
from megatron_lwz.rewards.writing import WritingComponent
from megatron_lwz.types import FinishReason, Prompt, Rollout
from tests.support.engine_model import NORM, write_changed
from tests.support.engine_reward_model import LONGEST, write_reward_model

TOKEN = "secret"


class Served:
    """A running server and transformers' model of the same folder."""

    def __init__(self, folder: Path, url: str, model: Any) -> None:
        self.folder, self.url, self.model = folder, url, model
        self.tokenizer = Tokenizer(folder)

    def post(self, *bodies: Any, token: str | None = TOKEN) -> list[tuple[int, Any]]:
        """(status, JSON) of every body, all sent at once."""

        async def ask() -> list[tuple[int, Any]]:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with aiohttp.ClientSession(headers=headers) as session:

                async def one(body: Any) -> tuple[int, Any]:
                    data = body if isinstance(body, bytes) else json.dumps(body).encode()
                    async with session.post(f"{self.url}/score", data=data) as response:
                        return response.status, await response.json()

                return await asyncio.gather(*map(one, bodies))

        return asyncio.run(ask())

    def expected(self, text: str) -> float:
        with torch.no_grad():
            return float(self.model(torch.tensor([self.tokenizer.encode(text)])).logits[0, 0])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served_reward")
    model = write_reward_model(folder)
    port = free_port()
    options = ["--model", str(folder), "--port", str(port), "--threads", "1", "--tokens-per-batch", "1000"]
    server = ServerProcess(
        [sys.executable, "-m", "megatron_lwz.cli.serve_reward", *options],
        url=f"http://127.0.0.1:{port}",
        token=TOKEN,
        env=environment.child_environment(LWZ_REWARD_TOKEN=TOKEN, OMP_NUM_THREADS="1"),
        log_path=folder / "server.log",
    )
    server.start()
    try:
        server.wait_ready()
        yield Served(folder, server.url, model)
    finally:
        server.stop()


def test_scores_are_those_of_transformers_whatever_they_are_packed_with(served: Served) -> None:
    texts = [f"text {'w300 ' * (n * n % 67)}{n}" for n in range(30)]
    answers = served.post({"texts": texts[:20]}, {"texts": texts[20:]}, {"texts": texts[::-1]})
    assert [status for status, _ in answers] == [200] * 3
    expected = [served.expected(text) for text in texts]
    first, second, reverse = (answer["scores"] for _, answer in answers)
    assert first + second == pytest.approx(expected, abs=1e-4) and reverse[::-1] == pytest.approx(expected, abs=1e-4)
    assert answers[0][1]["tokens"] == [len(served.tokenizer.encode(text)) for text in texts[:20]]


def test_the_run_s_client_gets_the_score_of_the_rendered_answer(served: Served) -> None:
    async def ask() -> Any:
        async with WritingComponent(WritingReward(url=served.url), TOKEN) as component:
            text = "<think>plan</think><answer> rain fell </answer>"
            rollout = Rollout("r", "p", 0, (1,), (2,), (0.0,), (), FinishReason.STOP, text)
            return (await component.score(Prompt("p", "Of rain?"), [rollout]))[0]

    score = asyncio.run(ask())
    text = Rendering(end="<|endoftext|>")("Of rain?", Reply("rain fell"))
    assert score.valid and score.value == pytest.approx(served.expected(text), abs=1e-4)
    assert score.version.startswith("writing/reward@") and len(score.version) > 40


def test_empty_and_overlong_texts_have_no_score_and_a_reason(served: Served) -> None:
    ((status, answer),) = served.post({"texts": ["fine", "", "x" * (LONGEST + 1), "x" * LONGEST]})
    assert status == 200 and [score is None for score in answer["scores"]] == [False, True, True, False]
    assert answer["errors"] == {"1": "empty", "2": f"{LONGEST + 1} tokens, at most {LONGEST}"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        ({}, 'needs a list "items" or a list "texts"'),
        ({"items": [], "texts": []}, 'needs a list "items" or a list "texts"'),
        ({"texts": [1]}, "must hold strings"),
        ({"items": [{"prompt": "p"}]}, 'item 0: needs the strings "prompt" and "answer"'),
        ({"items": [{"prompt": "p", "answer": "a", "thinking": 3}]}, '"thinking" must be a string'),
        ({"texts": ["a"] * 4097}, "at most 4096"),
    ],
)
def test_bad_requests_are_refused_in_one_line(served: Served, body: Any, words: str) -> None:
    ((status, answer),) = served.post(body)
    assert status == 400 and words in answer["error"]["message"]


def test_only_health_answers_without_the_token(served: Served) -> None:
    assert [status for status, _ in served.post({"texts": ["a"]}, token=None)] == [401]
    assert [status for status, _ in served.post({"texts": ["a"]}, token="wrong")] == [401]

    async def health() -> Any:
        async with aiohttp.ClientSession() as session, session.get(f"{served.url}/health") as response:
            return await response.json()

    answer = asyncio.run(health())
    assert answer["status"] == "ok" and answer["max_length"] == LONGEST and answer["waiting"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "not of a reward model"),
        ({"model_type": "llama"}, "only 'qwen2'"),
    ],
)
def test_what_is_no_reward_model_is_refused_in_one_line(tmp_path: Path, capsys: Any, change: Any, words: str) -> None:
    write_reward_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    assert common.run(serve_reward.main, ["--model", str(tmp_path), "--port", "0"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert words in line


def test_weights_that_are_not_finite_are_refused_in_one_line(tmp_path: Path, capsys: Any) -> None:
    write_reward_model(tmp_path / "sound")
    folder = write_changed(tmp_path / "sound", tmp_path / "bad", (NORM, float("nan")))
    try:
        assert common.run(serve_reward.main, ["--model", str(folder), "--port", "0"]) == 2
    finally:
        launch.shutdown()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert f"checkpoint {folder}: tensor {NORM} holds NaN or infinite values" in line


@pytest.mark.long
def test_a_text_of_32k_tokens_is_scored(tmp_path: Path) -> None:
    from megatron_lwz.rewards.served_model import ServedRewardModel

    model = write_reward_model(tmp_path, max_length=32768)
    try:
        ours = ServedRewardModel(tmp_path)
        tokens = torch.randint(300, (32768,), generator=torch.Generator().manual_seed(0)).tolist()
        with torch.no_grad():
            expected = float(model(torch.tensor([tokens])).logits[0, 0])
        assert ours.score([tokens, tokens[:5]])[0] == pytest.approx(expected, abs=1e-3)
    finally:
        launch.shutdown()
