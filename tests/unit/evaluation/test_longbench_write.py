from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from megatron_lwz.config.sections import JudgeSection
from megatron_lwz.errors import EngineError
from megatron_lwz.evaluation.judge_prompts import QUALITY_DIMENSIONS
from megatron_lwz.evaluation.longbench_write import evaluate, evaluate_now, read_quality, ruler
from megatron_lwz.evaluation.responses import Response, read_responses
from megatron_lwz.evaluation.tasks import read_tasks
from megatron_lwz.rewards.judge_client import Judge
from megatron_lwz.types import LengthRange
from tests.support.scripted_server import KEY, Scripted, serving

PUBLIC = json.loads((Path(__file__).parent / "data" / "longbench_write.json").read_text(encoding="utf-8"))


def reply(*scores: int) -> str:
    return json.dumps({"Analysis": "…", **dict(zip(QUALITY_DIMENSIONS, scores, strict=True))})


def judged(server: Scripted, responses, **settings):
    async def main():
        async with Judge(JudgeSection(url=server.url, model="j", backoff=0.01, **settings), KEY) as judge:
            return await evaluate(responses, judge)

    with serving(server):
        return asyncio.run(main())


@pytest.fixture
def responses(tmp_path):
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PUBLIC["rows"]))
    return read_responses(tmp_path / "r.jsonl")


def test_s_l_equals_the_public_script(responses):
    found = evaluate_now(responses)
    assert found.metrics["s_l"].value == PUBLIC["mean"] and "s_q" not in found.metrics
    assert [row["s_l"] for row in found.rows] == [row["score"] for row in PUBLIC["rows"]]


def test_s_q_is_the_public_mean_of_six_dimensions(responses):
    rng = np.random.default_rng(0)
    scores = rng.integers(1, 6, (len(responses), 6))
    by_text = {response.prompt: row for response, row in zip(responses, scores.tolist(), strict=True)}

    def answer(prompt: str, _: int) -> str:
        task = prompt.split("===\n", 1)[1].split("\n===", 1)[0]
        return reply(*by_text[task])

    found = judged(Scripted(answer), responses)
    # eval_quality.py: (mean of a dimension over responses − 1) · 25, then the mean over dimensions
    public = [(float(column.mean()) - 1) * 25 for column in scores.T]
    assert found.metrics["s_q"].value == pytest.approx(sum(public) / 6)
    for name, expected in zip(QUALITY_DIMENSIONS, public, strict=True):
        assert found.metrics[name].value == pytest.approx(expected)
    assert found.metrics["s_mean"].value == pytest.approx((sum(public) / 6 + PUBLIC["mean"]) / 2)
    assert found.unjudged == 0 and found.rows[0]["judge"] == "scripted-1/lwz-quality-1"


def test_what_got_no_verdict_is_left_out_and_counted(responses):
    found = judged(Scripted(lambda prompt, _: reply(5, 5, 5, 5, 5, 5) if "\ntask 1\n" in prompt else "no"), responses)
    assert found.unjudged == len(responses) - 1 and found.metrics["s_q"].count == 1
    assert found.metrics["s_q"].value == 100 and found.metrics["s_l"].count == len(responses)


@pytest.mark.parametrize("scores", [(0, 1, 1, 1, 1, 1), (6, 1, 1, 1, 1, 1)])
def test_scores_out_of_range_are_no_scores(scores):
    assert read_quality(reply(*scores)) is None
    assert read_quality(reply(1, 2, 3, 4, 5, 1).replace("Clarity", "Charity")) is None


def test_a_judge_that_never_answers_ends_it_at_once(responses):
    server = Scripted(lambda *_: web.Response(status=401, text="bad key"))
    with pytest.raises(EngineError, match="LWZ_JUDGE_KEY"):
        judged(server, responses, concurrency=4)
    assert len(server.bodies) <= 8


def test_the_ruler_groups_by_asked_length():
    responses = [
        Response(str(n), "a " * n, length=LengthRange(asked, asked)) for asked, n in ((10, 9), (10, 11), (20, 12))
    ]
    assert [(s.asked, s.mean, s.longest, s.count) for s in ruler(responses)] == [(10, 10, 11, 2), (20, 12, 12, 1)]


def test_rows_without_ids_are_matched_by_prompt(tmp_path):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": p, "length": 9}) + "\n" for p in "abc"))
    (tmp_path / "r.jsonl").write_text("".join(json.dumps({"prompt": p, "response": p}) + "\n" for p in "ca"))
    found = read_responses(tmp_path / "r.jsonl", read_tasks(tmp_path / "p.jsonl"))
    assert [response.id for response in found] == ["2", "0"]
