"""The metrics of an in-loop evaluation: rewards, texts without a judge, and a judge's ratings over HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import web

from megatron_lwz.config import validate
from megatron_lwz.errors import EngineError
from megatron_lwz.evaluation.judge_prompts import QUALITY_DIMENSIONS
from megatron_lwz.orchestrator.evaluation import OwnEngine, held_out_metrics
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.types import ComponentScore, FinishReason, Group, LengthRange, Prompt, Rollout, WeightVersion
from tests.support.scripted_server import KEY, Scripted, serving


def group(number: int) -> Group:
    text = "<think>Plan.</think>\n<answer>" + "word " * 100 + "</answer>"
    rollout = Rollout(
        f"{number}-0", f"p{number}", 0, (1,), (2, 3), (-0.1, -0.2), (), FinishReason.STOP, text, "</answer>"
    )
    scores = {"length": ComponentScore(0.5, details={"words": 100.0})}
    return Group(-number, Prompt(f"p{number}", f"Write {number}.", LengthRange(100, 200)), (rollout,), (scores,), 4)


GROUPS = [group(number) for number in range(1, 5)]


def metrics(cache: Path, **judge: object) -> dict[str, float]:
    config = validate({"evaluation": {"quality": bool(judge)}, "judge": judge})
    return asyncio.run(held_out_metrics(GROUPS, ["length"], config, cache))


def test_rewards_and_texts_need_no_judge(tmp_path):
    found = metrics(tmp_path / "cache.sqlite")
    assert found["eval/reward/length"] == 0.5 and found["eval/rollout/mean_length"] == 2
    assert found["eval/text/s_l"] == 100 and found["eval/text/distinct_1"] == 0.01
    assert found["eval/text/language_consistent"] == 1 and not any(name.startswith("eval/quality") for name in found)


def test_a_judge_rates_each_answer_once_whatever_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("LWZ_JUDGE_KEY", KEY)

    def rate(prompt: str, number: int) -> str:
        return "nonsense" if "Write 3" in prompt else json.dumps(dict.fromkeys(QUALITY_DIMENSIONS, 4))

    server = Scripted(rate)
    with serving(server):
        judge = {"url": server.url, "model": "m", "malformed_retries": 0}
        found = metrics(tmp_path / "cache.sqlite", **judge)
        assert found["eval/quality/s_q"] == 75 and found["eval/quality/unjudged"] == 1 and len(server.bodies) == 4
        assert metrics(tmp_path / "cache.sqlite", **judge) == found and len(server.bodies) == 4
    assert "Plan." not in json.dumps(server.bodies), "the judge sees the answer alone"


def test_a_judge_that_fails_costs_its_ratings_only(tmp_path, caplog):
    server = Scripted(lambda *_: web.Response(status=404, text="no such model"))
    with serving(server):
        found = metrics(tmp_path / "cache.sqlite", url=server.url, model="m", retries=0)
    assert found["eval/quality/unjudged"] == 4 and found["eval/reward/length"] == 0.5
    assert "not rated" in caplog.text


def test_an_engine_that_is_closed_is_not_started_any_more(tmp_path):
    engine = OwnEngine(validate({}), RunPaths(tmp_path))
    engine.close()
    with pytest.raises(EngineError, match="the run ends"):
        engine.serve(WeightVersion(0), tmp_path)
