import asyncio

import numpy as np
import pytest
import torch
from aiohttp import web

from megatron_lwz.config import validate
from megatron_lwz.config.sections import DiversityReward, RewardSection
from megatron_lwz.errors import ConfigError
from megatron_lwz.orchestrator.experience import advantages_of
from megatron_lwz.rewards.composite import build_rewards, check_components
from megatron_lwz.rewards.diversity import DiversityComponent, classes
from tests.support.embeddings import BREAD, HORSE, STEED, Embeddings, embed
from tests.support.engine_model import write_engine_model
from tests.support.scoring import prompt, rollout
from tests.support.scripted_server import KEY, serving

LONGEST = "tests.support.scoring:longest"


def measure(section, *answers, key=None):
    async def run():
        async with DiversityComponent(section, key) as component:
            texts = [f"<think>{place}</think><answer>{answer}</answer>" for place, answer in enumerate(answers)]
            found = await component.score(prompt(), [rollout(text, index=place) for place, text in enumerate(texts)])
            return found, component.metrics()

    return asyncio.run(run())


def values(scores):
    return [score.value if score.valid else None for score in scores]


def test_the_score_is_the_mean_distance_to_the_siblings_answers():
    scores, counted = measure(DiversityReward(distance="ngram"), HORSE, HORSE, BREAD, " ")
    assert values(scores) == [0.5, 0.5, 1.0, 0.0], "no one is measured against a missing answer"
    assert [score.details.get("nearest") for score in scores] == [1.0, 1.0, 0.0, None]
    assert scores[0].version == "diversity/ngram" and counted == {"diversity/masked_groups": 0.0}
    half = f"{HORSE} {BREAD}"
    scores, _ = measure(DiversityReward(distance="ngram"), half, HORSE)
    assert 0.4 < scores[0].value == scores[1].value < 0.7


def test_a_group_with_nothing_to_compare_is_masked():
    for answers in ((HORSE,), (HORSE, ""), ("", "")):
        scores, counted = measure(DiversityReward(distance="ngram"), *answers)
        assert values(scores) == [None] * len(answers) and counted["diversity/masked_groups"] == 1


def test_classes_are_closed_and_their_distance_is_0_or_1():
    similar = np.array([[0, 0.9, 0.1, 0], [0.9, 0, 0.8, 0], [0.1, 0.8, 0, 0], [0, 0, 0, 0]])
    assert classes(similar, 0.8).tolist() == [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert classes(similar, 0.95).sum() == 0
    edited = HORSE.replace("old", "grey")
    scores, _ = measure(DiversityReward(distance="ngram", same=0.5), HORSE, edited, BREAD)
    assert values(scores) == [0.5, 0.5, 1.0] and 0.5 < scores[0].details["nearest"] < 1


def test_embeddings_see_the_same_told_in_other_words():
    server = Embeddings(lambda texts, _: [embed(text) for text in texts])
    section = {"distance": "embedding", "model": "m", "backoff": 0.01}
    with serving(server):
        scores, counted = measure(DiversityReward(url=server.url, **section), HORSE, STEED, BREAD, key=KEY)
    assert (
        scores[2].value > 0.9 and scores[0].value == pytest.approx(0.5, abs=0.05) and scores[0].version == "diversity/m"
    )
    assert counted == {"diversity/requests": 1.0, "diversity/masked_groups": 0.0}
    failing = Embeddings(lambda *_: web.Response(status=400))
    with serving(failing):
        scores, counted = measure(DiversityReward(url=failing.url, **section), HORSE, STEED, key=KEY)
    assert values(scores) == [None, None]
    assert counted["diversity/failed/refused"] == counted["diversity/masked_groups"] == 1


def test_a_local_encoder_reads_paragraphs_over_the_whole_text(tmp_path):
    write_engine_model(tmp_path)
    section = DiversityReward(distance="embedding", hf=str(tmp_path), most_paragraphs=3)
    long = "\n".join([HORSE, "Aside.", STEED, "Aside again.", BREAD, "End."])
    scores, _ = measure(section, long, BREAD, f"{HORSE}\n{STEED}\n{BREAD}")
    assert scores[0].details["nearest"] == scores[2].details["nearest"] == pytest.approx(1.0), "every second of six"
    assert 0 < scores[1].details["nearest"] < 0.999 and scores[1].value > scores[0].value > 0


def columns(*rows):
    return torch.tensor([rows]), torch.ones(1, len(rows), len(rows[0]), dtype=torch.bool)


NAMES = ("length", "format", "diversity", "longest")


def advantages(rewards, valid, **diversity):
    reward = {"functions": [LONGEST], "normalizer": "none", "diversity": {"distance": "ngram"} | diversity}
    config = validate({"reward": reward, "grpo": {"truncated": "keep"}})
    return advantages_of(rewards, valid, torch.zeros(rewards.shape[:2], dtype=torch.bool), config, names=NAMES)


def test_quality_is_multiplied_and_form_is_not():
    rewards, valid = columns([1.0, 1.0, 0.2, 5.0], [1.0, 1.0, 1.0, 5.0], [1.0, 1.0, 0.2, -5.0], [1.0, 1.0, 1.0, -5.0])
    found = advantages(rewards, valid)
    assert found.names == NAMES
    assert found.parts[0, :, :3].abs().max() == 0, (
        "equal lengths and formats stay equal; diversity has no part of its own"
    )
    assert found.total[0].tolist() == pytest.approx([(v + 2) / 3 for v in (1.0, 5.0, -9.0, -5.0)]), (
        "mean −2, three components"
    )
    masked = valid.clone()
    masked[..., 2] = False
    assert advantages(rewards, masked).total[0].tolist() == pytest.approx([5 / 3, 5 / 3, -5 / 3, -5 / 3])
    everything = advantages(rewards, valid, rescales=["length", "longest"])
    assert everything.parts[0, :, 0].abs().max() > 0 and everything.parts[0, :, 1].abs().max() == 0


def test_as_a_component_it_is_averaged():
    rewards, valid = columns([1.0, 1.0, 0.2, 5.0], [1.0, 1.0, 1.0, 5.0])
    found = advantages(rewards, valid, use="component")
    assert found.parts[0, :, 3].abs().max() == 0 and found.total[0].tolist() == pytest.approx([-0.1, 0.1])


def test_a_group_of_copies_teaches_nothing():
    rewards, valid = columns([1.0, 1.0, 0.0, 5.0], [1.0, 1.0, 0.0, 4.0])
    assert advantages(rewards, valid).total.abs().max() == 0


def test_it_is_a_component_only_when_asked_for():
    section = RewardSection(diversity=DiversityReward(distance="ngram"), functions=(LONGEST,))
    assert [reward.name for reward in build_rewards(section)] == ["length", "format", "diversity", "longest"]
    assert "diversity" not in [reward.name for reward in build_rewards(RewardSection(functions=(LONGEST,)))]


@pytest.mark.parametrize(
    ("diversity", "functions", "words"),
    [
        ({"distance": "ngram"}, (), "no component rates quality"),
        ({"distance": "ngram", "rescales": ["writing"]}, (LONGEST,), "is no other component: choose among format, length, longest"),
        ({"distance": "ngram", "rescales": ["diversity"]}, (LONGEST,), "is no other component"),
        ({"distance": "ngram", "hf": "x"}, (LONGEST,), "embeds nothing"),
        ({"distance": "embedding"}, (LONGEST,), "give url or hf"),
        ({"distance": "embedding", "url": "http://127.0.0.1:1"}, (LONGEST,), "name the model"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_named(diversity, functions, words):
    section = RewardSection(diversity=DiversityReward(**diversity), functions=functions)
    with pytest.raises(ConfigError, match=words):
        build_rewards(section)
    check_components(RewardSection(diversity=DiversityReward(distance="ngram", use="component")))
