import asyncio
import math

import pytest
import torch
from aiohttp import web

from megatron_lwz.config.sections import OverlapReward, RewardSection
from megatron_lwz.errors import ConfigError
from megatron_lwz.rewards.composite import build_rewards, component_sections
from megatron_lwz.rewards.overlap import OverlapComponent, repeated_share
from tests.support.embeddings import BREAD, HORSE, STEED, Embeddings, embed
from tests.support.engine_model import write_engine_model
from tests.support.scoring import prompt, rollout
from tests.support.scripted_server import KEY, serving


def score(server, *answers, **settings):
    async def run():
        section = OverlapReward(url=server.url, model="m", backoff=0.01, **settings)
        async with OverlapComponent(section, KEY) as component:
            texts = [rollout(f"<think>t</think><answer>{answer}</answer>") for answer in answers]
            return list(await component.score(prompt(), texts)), component.metrics()

    with serving(server):
        return asyncio.run(run())


def test_paragraphs_said_again_in_other_words_are_found():
    server = Embeddings(lambda texts, _: [embed(text) for text in texts])
    scores, counted = score(server, f"{HORSE}\n{BREAD}\n{STEED}", f"{HORSE}\n{BREAD}", HORSE, "", batch=2)
    assert [s.value for s in scores] == pytest.approx([2 / 3, 1.0, 1.0, 0.0])
    assert [s.details["overlap"] for s in scores] == pytest.approx([1 / 3, 0, 0, 0])
    assert all(s.valid and s.version == "overlap/m" for s in scores)
    assert counted == {"overlap/requests": 2.0}, "three different paragraphs, two at a time"
    assert sorted(text for body in server.bodies for text in body["input"]) == sorted([HORSE, BREAD, STEED])


def test_short_paragraphs_and_those_beyond_the_bound_are_not_asked_about():
    server = Embeddings(lambda texts, _: [embed(text) for text in texts])
    scores, _ = score(server, f"Yes.\n{HORSE}\nNo.\n{BREAD}\n{STEED}", most_paragraphs=2)
    assert [s.value for s in scores] == [1.0]
    assert server.bodies[0]["input"] == [HORSE, BREAD]


def test_a_failure_that_passes_is_tried_again():
    answers = [web.json_response({"error": "busy"}, status=429), web.Response(status=503)]
    server = Embeddings(lambda texts, n: answers[n] if n < 2 else [embed(text) for text in texts])
    scores, counted = score(server, f"{HORSE}\n{STEED}")
    assert [s.value for s in scores] == [0.5]
    assert counted["overlap/retried"] == 2


@pytest.mark.parametrize(
    "said",
    [
        web.Response(status=500),
        web.Response(status=400, text="no such model"),
        web.Response(text="not json"),
        web.json_response([]),
        web.json_response({"data": [{"index": 0, "embedding": [1.0]}]}),
        web.json_response({"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}]}),
        web.json_response({"data": [{"index": 0, "embedding": []}, {"index": 1, "embedding": []}]}),
        web.json_response({"data": [{"index": 0, "embedding": ["x"]}, {"index": 1, "embedding": [1]}]}),
        web.Response(text='{"data": [{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}]}'),
        web.Response(text="[" * 100_000),
    ],
)
def test_a_wrong_or_hostile_answer_masks_the_group_and_is_counted(said):
    def answer(_, __):
        return web.Response(status=said.status, body=said.body, content_type="application/json")

    scores, counted = score(Embeddings(answer), f"{HORSE}\n{STEED}", HORSE, retries=1)
    assert [(s.value, s.valid) for s in scores] == [(0.0, False)] * 2
    assert counted["overlap/masked_groups"] == 1
    assert sum(value for name, value in counted.items() if "failed" in name) == 1


def test_vectors_of_other_lengths_in_another_answer_mask_the_group():
    server = Embeddings(lambda texts, n: [[1.0] * (2 + n) for _ in texts])
    scores, counted = score(server, f"{HORSE}\n{STEED}", batch=1)
    assert not scores[0].valid and counted["overlap/failed/contract"] == 1


def test_a_silent_server_masks_the_group():
    server = Embeddings(lambda texts, _: [embed(text) for text in texts], delay=5.0)
    scores, counted = score(server, f"{HORSE}\n{STEED}", timeout=0.2, retries=0)
    assert not scores[0].valid
    assert counted["overlap/failed/timeout"] == 1


def test_a_local_encoder_takes_the_servers_place(tmp_path):
    write_engine_model(tmp_path)
    component = OverlapComponent(OverlapReward(hf=str(tmp_path), threshold=0.999))
    text = f"<think>t</think><answer>{HORSE}\n{BREAD}\n{HORSE}</answer>"
    (scored,) = asyncio.run(component.score(prompt(), [rollout(text)]))
    assert scored.value == pytest.approx(2 / 3) and scored.version == "overlap/local"


def test_settings_that_cannot_work_are_named(tmp_path):
    for section in (
        OverlapReward(),
        OverlapReward(url="http://h:1", hf="x"),
        OverlapReward(url="http://h:1"),
        OverlapReward(hf=str(tmp_path)),
    ):
        with pytest.raises(ConfigError, match=r"reward\.overlap"):
            OverlapComponent(section)
    (tmp_path / "config.json").write_text('{"model_type": "none such"}')
    with pytest.raises(ConfigError, match=r"is no encoder"):
        OverlapComponent(OverlapReward(hf=str(tmp_path)))


def test_it_is_a_component_only_when_asked_for():
    section = RewardSection(overlap=OverlapReward(url="http://127.0.0.1:1", model="m", weight=0.5))
    assert [reward.name for reward in build_rewards(section)] == ["length", "format", "overlap"]
    assert component_sections(section)["overlap"].weight == 0.5
    assert [reward.name for reward in build_rewards(RewardSection())] == ["length", "format"]


def test_the_share_is_of_rows_like_an_earlier_one():
    angles = torch.tensor([0.0, 0.1, 1.5, 1.6, 3.0])
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    assert repeated_share(rows, math.cos(0.11)) == pytest.approx(0.4)
    assert repeated_share(rows[:1], 0.0) == 0.0
