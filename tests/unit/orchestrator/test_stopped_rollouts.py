"""A rollout that the guard stopped: trained on like others, read like others, its given scores kept."""

import asyncio

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_lwz.config import validate
from megatron_lwz.orchestrator.experience import experience_metrics, make_batch
from megatron_lwz.orchestrator.rescore import Rescorer
from megatron_lwz.report.rollouts import readings
from megatron_lwz.rewards.composite import build_rewards
from megatron_lwz.rewards.guard import response_guards
from megatron_lwz.rollout.guard import GuardedRollout
from megatron_lwz.rollout.writer import text_of
from megatron_lwz.types import Alarm, ComponentScore, FinishReason, Group, LengthRange, Prompt, Rollout

NAMES = ("length", "format")
GIVEN = {"length": 0.0, "format": -1.0}
TEXT = "<think>a</think><answer>one two three</answer>"


def group() -> Group:
    def rollout(index, reason, alarms=(), text=TEXT):
        stop = "</answer>" if reason is FinishReason.STOP else None
        return Rollout(f"0-{index}", "p", index, (1,), (5,) * 8, (-0.5,) * 8, (), reason, text, stop, tuple(alarms))

    rollouts = (
        rollout(0, FinishReason.GUARD, [Alarm("loop<>", 4), Alarm("format", 8, True, GIVEN)], "<answer>one two three"),
        rollout(1, FinishReason.STOP),
        rollout(2, FinishReason.LENGTH, text="<think>never closed"),
    )
    scores = ({name: ComponentScore(value) for name, value in GIVEN.items()},) + (
        {"length": ComponentScore(1.0), "format": ComponentScore(1.0)},
    ) * 2
    return Group(0, Prompt("p", "Write.", LengthRange(2, 5)), rollouts, scores, 1)


def config_of(**reward):
    return validate(
        {"grpo": {"group_size": 3, "truncated": "mask"}, "rollout": {"guard": {"mode": "on", "scores": GIVEN}, "max_new_tokens": 20},
         "reward": reward}
    )  # fmt: skip


def test_what_it_wrote_is_trained_on_with_its_advantage_and_it_is_not_truncated():
    batch = make_batch([group()], config_of(), names=NAMES, step=1)
    metrics = experience_metrics([group()], config_of(), names=NAMES, step=1)
    assert batch.weights.tolist() == [1, 1, 0], "only the rollout that hit the token limit is masked"
    assert batch.advantages[0] < 0 < batch.advantages[1]
    assert batch.lengths() == [9, 9, 9]
    assert metrics["rollout/guard/format/stopped"] == 1 and metrics["rollout/guard/format/spared"] == 12
    assert metrics["rollout/guard/exact"] == 0 and metrics["rollout/truncated"] == 1 / 3


def test_the_reader_says_where_it_was_stopped():
    page = readings([group()], 1)  # the rollout of median reward is another one
    assert "guard" not in page
    one = group()
    page = readings([Group(0, one.prompt, one.rollouts[:1], one.scores[:1], 1)], 1)
    assert "ended by guard" in page
    assert (
        "guard: loop&lt;&gt; at token 4, went on" in page and "guard: format, stopped at token 8, scores given" in page
    )


def test_rescoring_keeps_what_it_was_given():
    config = config_of()
    changed = config_of(length={"over_power": 2.0}, format={"duplicate_penalty": 0.1})
    rows = Rescorer(config, changed, again=True).run([group()], {}, lambda done: None)
    assert rows[0].new.scores == (0.0, -1.0) and rows[1].new.scores == (1.0, 1.0)


EOS, STOPS = 0, ("</answer>", "<|user|>")
PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<|user|>",
        "<|us",
        "</ans",
        " ",
        "a ",
        "字",
        "b1",
        "word word ",
        "\n",
    ]
).map(str.encode)
TOKENS = st.lists(st.one_of(PIECES, PIECES, st.binary(min_size=1, max_size=3)), max_size=12).map(b"".join).map(list)


def decode(ids) -> str:
    return bytes(i for i in ids if i != EOS).decode("utf-8", "replace")


def written(tokens, stops, limit=60) -> tuple[list[int], FinishReason, str, str | None]:
    """The rollout that an engine makes of an endless row of tokens: (tokens, reason, text, stop string)."""
    for count in range(1, limit + 1):
        if count > len(tokens) or tokens[count - 1] == EOS:
            return [*tokens[: count - 1], EOS], FinishReason.STOP, decode(tokens[: count - 1]), None
        text = decode(tokens[:count])
        stop = next((stop for stop in stops if stop in text), None)
        if stop is not None:
            return tokens[:count], FinishReason.STOP, text_of(text, stop), stop
    return tokens[:limit], FinishReason.LENGTH, decode(tokens[:limit]), None


@settings(max_examples=100)
@given(
    TOKENS, st.lists(TOKENS, min_size=1, max_size=3), st.sampled_from([STOPS, STOPS[1:], ()]),
    st.sampled_from([None, LengthRange(2, 3)]), st.integers(1, 6),
)  # fmt: skip
def test_an_exact_stop_scores_as_every_continuation_from_tokens_to_scores(tokens, more, stops, length, interval):
    """Bytes that are cut inside characters, or are none; text that a stop string takes away at the end; end of text; the limit."""
    config = validate(
        {"grpo": {"truncated": "keep"}, "reward": {"format": {"duplicate_penalty": 0.0}, "length": {"maximum": 5}},
         "rollout": {"guard": {"mode": "on", "interval": interval}, "stop": list(stops)}}
    )  # fmt: skip
    prompt = Prompt("p", "Write.", length)
    whole, *_ = written(tokens, stops)
    guarded = GuardedRollout(
        response_guards(config)(prompt), config.rollout.guard, decode=decode, stops=stops, ends={EOS}, limit=60
    )
    stopped_at = guarded.take(whole)
    assume(stopped_at is not None)
    kept = whole[:stopped_at]

    def rollout(tokens, reason, text, stop):
        return Rollout("r", "p", 0, (), tuple(tokens), (), (), reason, text, stop)

    ends = [written(kept + rest, stops) for rest in more]
    assert all(end[0][:stopped_at] == kept for end in ends), "it would have ended by itself before"
    rollouts = [rollout(kept, FinishReason.GUARD, decode(kept), None), *(rollout(*end) for end in ends)]

    async def columns():
        return [await reward.score(prompt, rollouts) for reward in build_rewards(config.reward)]

    for column in asyncio.run(columns()):
        assert len({(score.value, score.valid) for score in column}) == 1
