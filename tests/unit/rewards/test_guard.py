"""What the guard says of scores before a rollout has ended: when it says determined, every way to go on scores the same."""

import asyncio
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_lwz.config import validate
from megatron_lwz.errors import ConfigError
from megatron_lwz.rewards.composite import build_rewards
from megatron_lwz.rewards.guard import response_guards
from megatron_lwz.rollout.engine.text import StopFinder
from megatron_lwz.rollout.writer import text_of
from megatron_lwz.types import FinishReason, LengthRange, Prompt, Rollout, StreamVerdict

LOOSE = {"format": {"duplicate_penalty": 0.0}}


def config_of(reward=None, *, truncated="keep", guard=None, stop=("</answer>", "<|user|>")):
    return validate(
        {"reward": reward or {}, "grpo": {"truncated": truncated}, "rollout": {"guard": guard or {"mode": "on"}, "stop": list(stop)}}
    )  # fmt: skip


def verdict_of(text, config, *, length=None, template="think", prompt="Write.") -> StreamVerdict:
    return response_guards(config)(Prompt("p", prompt, length, template=template)).feed(text)


def test_a_response_that_is_fine_so_far_raises_nothing():
    for text in (
        "",
        "<think>",
        "<think>a</think> <ans",
        "<think>a</think><answer>words",
        "<think>a</think><answer>b</answer>\n",
    ):
        assert verdict_of(text, config_of(), length=LengthRange(5, 10)) == StreamVerdict()


@pytest.mark.parametrize(
    ("reward", "keys", "text", "open"),
    [
        # a hopeless format alone leaves the length of an answer open, and the share of its near-duplicates
        ({}, {"length": LengthRange(5, 10)}, "<think>a<think>b", ("length", "format")),
        (LOOSE, {"length": LengthRange(5, 10)}, "<think>a<think>b", ("length",)),
        (LOOSE, {}, "<think>a<think>b", ()),
        (LOOSE | {"structure": {"checks": ["lists"]}}, {}, "<think>a<think>b", ("structure",)),
        (LOOSE | {"writing": {"url": "http://127.0.0.1:1"}}, {}, "<think>a<think>b", ("writing",)),
        (LOOSE | {"functions": ["os.path:join"]}, {}, "<think>a<think>b", ("join",)),
        # once the answer is closed nothing can be added to it; a function of one's own may look elsewhere
        ({"structure": {"checks": ["lists"]}}, {"length": LengthRange(5, 10)}, "<think>a</think><answer>b</answer>c", ()),
        ({"functions": ["os.path:join"]}, {}, "<think>a</think><answer>b</answer>c", ("join",)),
    ],
)  # fmt: skip
def test_which_components_are_open_when_the_format_is_hopeless(reward, keys, text, open):
    assert verdict_of(text, config_of(reward), **keys) == StreamVerdict(("format",), open)


def test_an_answer_beyond_the_length_rewards_zero():
    asked = LengthRange(5, 10)
    for reward, limit in (
        ({"length": {"maximum": 20}}, 20),
        ({"length": {"relative_maximum": 3.0}}, 30),
        ({"length": {"shape": "longbench"}}, 40),
        ({"length": {"maximum": 20, "unit": "characters"}}, 20),
    ):
        unit = "w" if "unit" in reward["length"] else "word "
        text = "<think>a</think><answer>" + unit * (limit + 1)
        assert verdict_of(text, config_of(reward), length=asked) == StreamVerdict()
        assert verdict_of(text + unit * 2, config_of(reward), length=asked) == StreamVerdict(("length",), ("format",))
        broken = "a<think>a</think><answer>" + unit * (limit + 3)
        found = verdict_of(broken, config_of(reward | LOOSE), length=asked)
        assert found == StreamVerdict(("format", "length"), ()), "nothing is left to be decided"
    endless = config_of({"length": {"maximum": 20, "clip": False}})
    assert verdict_of("<think>a</think><answer>" + "word " * 100, endless, length=asked) == StreamVerdict()
    thinking = config_of({"length": {"maximum": 20, "count_thinking": True}})
    assert verdict_of("<think>" + "word " * 23, thinking, length=asked).rules == ("length",)


def test_a_loop_is_a_rule_but_determines_nothing():
    text = "<think>a</think><answer>" + "Round and round it goes. " * 100
    guard = {"mode": "on", "loop_characters": 1000, "loop_repeats": 5}
    assert verdict_of(text, config_of(guard=guard)) == StreamVerdict(("loop",), ("format",))
    assert verdict_of(text, config_of(guard=guard | {"rules": ["format"]})) == StreamVerdict()
    assert verdict_of(text, config_of(guard=guard | {"loop_characters": 5000})) == StreamVerdict()


@pytest.mark.parametrize("truncated", ["mask", "penalty"])
def test_where_truncation_is_treated_no_component_is_determined(truncated):
    assert verdict_of("x", config_of(LOOSE, truncated=truncated)) == StreamVerdict(("format",), ("length", "format"))


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ({"reward": {}, "guard": {"scores": {"lenght": 0.0}}}, r"guard\.scores' = 'lenght': is no component.*length"),
        ({"reward": {"length": {"unit": "tokens"}}, "guard": {}}, r"guard\.rules.*tokens"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_rewards_are_refused(tree, complaint):
    with pytest.raises(ConfigError, match=complaint):
        response_guards(config_of(tree["reward"], guard=tree["guard"]))
    tokens = config_of({"length": {"unit": "tokens"}}, guard={"rules": ["format"]})
    assert verdict_of("x", tokens, length=LengthRange(1, 2)).open == ("length", "format")


PIECES = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "<|user|>", "<|us", "er|>", "</ans", "<", " ", "\n", "a ", "字", "b1", "ab",
     "word word word ", "same words in a line of their own again and again\n", "# Title\n", "- item\n", "1. one\n"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=14).map("".join)
REWARDS = st.sampled_from(
    [
        {},
        LOOSE,
        LOOSE | {"length": {"maximum": 6}},
        LOOSE | {"length": {"relative_maximum": 2.0, "count_thinking": True}},
        LOOSE | {"length": {"shape": "longbench", "unit": "characters"}},
        LOOSE | {"length": {"maximum": 6, "clip": False}},
        LOOSE | {"structure": {"checks": ["headings", "numbering", "lists"]}},
        {"format": {"duplicate_penalty": 0.5, "minimum_shingles": 2}, "structure": {"checks": ["lists"]}},
    ]
)


def ended(text: str, stops: tuple[str, ...], reason: FinishReason) -> Rollout:
    """The rollout that ends where its text first holds a stop string, or for `reason` at the end of the text."""
    places = [(place, stop) for stop in stops if (place := text.find(stop)) >= 0]
    stop = None
    if places:
        place, stop = min(places)
        text, reason = text_of(text[: place + len(stop)], stop), FinishReason.STOP
    return Rollout("r", "p", 0, (), (1,), (), (), reason, text, stop)


def scores_of(config, prompt, rollouts):
    """Component → (value, valid) of each rollout."""

    async def columns():
        return {reward.name: await reward.score(prompt, rollouts) for reward in build_rewards(config.reward)}

    found = asyncio.run(columns())
    return [{name: (column[k].value, column[k].valid) for name, column in found.items()} for k in range(len(rollouts))]


@settings(max_examples=150)
@given(
    TEXTS,
    st.lists(st.tuples(TEXTS, st.sampled_from([FinishReason.STOP, FinishReason.LENGTH])), min_size=1, max_size=3),
    REWARDS,
    st.sampled_from([("</answer>", "<|user|>"), ("<|user|>",), ()]),
    st.sampled_from([None, LengthRange(2, 3)]),
    st.sampled_from(["think", "direct"]),
)
def test_whatever_follows_a_determined_rollout_scores_the_same(text, continuations, reward, stops, length, template):
    prompt = Prompt("p", "Write.", length, template=template)
    config = config_of(reward, stop=stops)
    safe, stop = StopFinder(stops).feed(text)
    assume(stop is None)
    verdict = response_guards(config)(prompt).feed(safe)
    assume(verdict.rules)
    rollouts = [ended(text + more, stops, reason) for more, reason in continuations]
    stopped, *others = scores_of(config, prompt, [ended(text, (), FinishReason.GUARD), *rollouts])
    determined = set(stopped) - set(verdict.open)
    for other in others:
        assert {name: other[name] for name in determined} == {name: stopped[name] for name in determined}


@settings(max_examples=200)
@given(TEXTS, REWARDS, st.sampled_from([None, LengthRange(2, 3)]), st.integers(1, 9))
def test_where_the_text_is_cut_makes_no_difference(text, reward, length, size):
    make = response_guards(config_of(reward, guard={"loop_characters": 30, "loop_repeats": 3}))
    prompt = Prompt("p", "Write about <think>.", length)
    pieces = make(prompt)
    for start in range(0, len(text), size):
        assert pieces.feed(text[start : start + size]) == make(prompt).feed(text[: start + size])


def test_the_property_is_not_empty():
    """Of the random texts above a good part is determined: under a config that allows it."""
    noise, hits = random.Random(0), 0
    for _ in range(300):
        text = "".join(noise.choices(["<think>", "</think>", "<answer>", "a ", "word "], k=8))
        hits += verdict_of(text, config_of(LOOSE)) == StreamVerdict(("format",), ())
    assert hits > 100
