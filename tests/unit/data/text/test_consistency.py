import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.config.sections import ConsistencyReward, RewardSection
from megatron_lwz.data.text.claims import find_claims
from megatron_lwz.data.text.consistency import find_contradictions
from megatron_lwz.rewards.composite import build_rewards
from megatron_lwz.rewards.consistency import ConsistencyComponent
from tests.support.scoring import prompt, rollout

CONTRADICTORY = [
    (
        "Anna Petrova was born in Odessa in 1950. Years passed. Anna, born on 3 May 1948, came home.",
        "Anna Petrova: born",
    ),
    ("Peter was born in 1961. In 1973, Peter was forty.", "Peter: born"),
    ("Peter was twelve in 1973. In 1990 Peter turned thirty-five, and left.", "Peter: born"),
    ("Anna was born in 1950.\nAnna died of a fever in March 1940.", "Anna: died before being born"),
    ("Clara Weiss died in 1919. Much later, Clara Weiss was killed in Lyon in 1923.", "Clara Weiss: died"),
    ("The Harbour Inn, founded in 1902, burnt. The Harbour Inn was established in 1911.", "Harbour Inn: founded"),
    ("Mount Karo is 3,200 metres high. Snow fell. Mount Karo was 2,900 meters high.", "Mount Karo: high"),
    ("李明生于1950年。1970年，李明十二岁。", "李明: born"),
    ("张三于一九五〇年去世。张三出生于1960年。", "张三: died before being born"),
    ("东方书店成立于1920年，生意很好。东方书店于1921年3月创办。", "东方书店: founded"),
    ("It began on Monday, 3 March 2021.", "the weekday of the date: it is a Wednesday"),
    ("It began on Monday, March 3, 2021.", "the weekday of the date: it is a Wednesday"),
    ("2021年3月3日，星期一，下雨。", "the weekday of the date: it is a Wednesday"),
    ("They met on 31 April.", "a day that does not exist"),
    ("They met on February 29, 2021, at noon.", "a day that does not exist"),
    ("那天是4月31日。", "a day that does not exist"),
]
SOUND = [
    "Peter was born in 1961. In 1973, Peter was twelve. In 1974, Peter was twelve.",
    "Anna was born in 1950. The sister of Anna was born in 1955. Anna's brother was born in 1957.",
    "Anna was born in 1950. If Anna was born in 1949, she would be older.",
    'Anna was born in 1950. "Anna was born in 1949," he lied.',
    "Anna was born in 1950. The register claims that Anna was born in 1951.",
    "Anna was born in 1950. She was born in 1960. He was born in 1970.",
    "Henry IV was born in 1367. Henry V was born in 1386. Henry was born in 1400.",
    "Anna Petrova was born in 1950. Anna Berg was born in 1960. Anna was born in 1970.",
    "Anna Petrova was born in 1950. Then Anna Berg came. Anna died in 1940.",
    "Henry V was born in 1386. Henry was born in 1421.",
    "John Smith was born in 1900. John Smith Jr was born in 1930. John Smith died in 1920.",
    "Princess Olga was born in 1903. The sons of Queen Olga wept. Olga died in Paris in 1890.",
    "Anna was born in 1950. Anna was born in about 1951. Anna was not born in 1952.",
    "The tower was built in 1950. The tower was rebuilt in 1990.",
    "Rome was founded in 753 BC. Rome was founded in 1900 BC.",
    "Mount Karo is 3,200 metres high. Mount Karo is 12 kilometres long.",
    "In June 31 people came. By February 30 villages were empty. In May 2031 it ended. June 31.5 kg.",
    "It began on Wednesday, 3 March 2021, and ended on February 29, 2020. Monday, 3 March.",
    "李明生于1950年。他的父亲生于1920年。父亲生于1921年。1962年，李明十三岁。",
    "李明生于1950年。据说李明生于1949年。“李明生于1948年。”",
    "2021年3月3日（星期三），2月29日，第12月40日。",
    "",
]


@pytest.mark.parametrize(("text", "about"), CONTRADICTORY)
def test_a_planted_contradiction_is_found_with_its_passages(text, about):
    _, (found,) = find_contradictions(text)
    assert found.about == about
    assert all(text[start:end] for start, end in found.passages) and list(found.passages) == sorted(found.passages)


@pytest.mark.parametrize("text", SOUND)
def test_what_can_be_true_is_left_alone(text):
    assert find_contradictions(text)[1] == []


def test_each_wrong_value_counts_once_and_checks_can_be_chosen():
    text = "Anna was born in 1950. Anna was born in 1951. Anna was born in 1951. Anna was born in 1952. On 31 June. On 31 June."
    assert [one.about for one in find_contradictions(text)[1]] == [
        "Anna: born",
        "Anna: born",
        "a day that does not exist",
    ]
    assert (
        len(find_contradictions(text, calendar=False)[1]) == 2 and len(find_contradictions(text, facts=False)[1]) == 1
    )


@given(
    st.lists(
        st.sampled_from(
            [*"aAé \n.,;“年月日岁生于(", "Anna", " was born in ", "1950", "31", "April ", "In 1970, ", "Monday, "]
        ),
        max_size=30,
    )
)
@settings(max_examples=150, deadline=None)
def test_any_text_can_be_read(parts):
    text = "".join(parts)
    for claim in find_claims(text):
        assert claim.low <= claim.high and 0 <= claim.start < claim.end <= len(text)
    find_contradictions(text)


def test_the_reward_falls_with_every_contradiction_and_says_why():
    component = ConsistencyComponent(ConsistencyReward(checks=("facts", "calendar")))
    answers = [text for text, _ in CONTRADICTORY[:2]] + ["It rained.", " ", " ".join(text for text, _ in CONTRADICTORY)]
    rollouts = [rollout(f"<think>Anna died in 1900.</think><answer>{answer}</answer>") for answer in answers]
    scores = asyncio.run(component.score(prompt(), rollouts))
    assert [score.value for score in scores] == [0.75, 0.75, 1.0, 0.0, 0.0]
    assert scores[0].details == {"claims": 2.0, "contradictions": 1.0}
    ((about, said),) = scores[0].reasons
    assert (
        about == "Anna Petrova: born" and "in Odessa in 1950" in said and "— against —" in said and "3 May 1948" in said
    )
    assert len(scores[4].reasons) == scores[4].details["contradictions"] > 10


def test_it_is_a_component_only_when_asked_for():
    section = RewardSection(consistency=ConsistencyReward(checks=("calendar",), weight=0.5))
    assert [reward.name for reward in build_rewards(section)] == ["length", "format", "consistency"]
    assert [reward.name for reward in build_rewards(RewardSection())] == ["length", "format"]
