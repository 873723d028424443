from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path

import pytest

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.errors import EngineError
from megatron_lwz.rollout.events import StreamEnd
from megatron_lwz.rollout.writer import RolloutWriter, text_of
from megatron_lwz.types import ComponentScore, FinishReason, WeightVersion
from tests.support.rollouts import prompts
from tests.support.synthetic_engine import CharTokenizer, Engine, chunk, written_logprob, written_token
from tests.support.waiting import wait_for


def expected_tokens(prompt_length: int, seed: int, count: int) -> tuple[int, ...]:
    end = prompt_length + count
    return tuple(written_token(seed, prompt_length + i, end) for i in range(count + 1))


def check_tokens(groups, engine: Engine) -> None:
    """Every rollout holds exactly the tokens of an undisturbed engine."""
    seeds = {tuple(r["prompt"][: engine.prompt_length(r["prompt"])]): set() for r in engine.requests}
    for request in engine.requests:
        seeds[tuple(request["prompt"][: engine.prompt_length(request["prompt"])])].add(request["seed"])
    for group in groups:
        written = set()
        for rollout in group.rollouts:
            start = len(rollout.prompt_tokens)
            (seed,) = (
                seed
                for seed in seeds[rollout.prompt_tokens]
                if rollout.tokens == expected_tokens(start, seed, engine.length(seed))
            )
            assert rollout.logprobs == tuple(written_logprob(seed, start + i) for i in range(len(rollout.tokens)))
            written.add(seed)
        assert len(written) == len(group.rollouts)


def test_a_step_gives_whole_scored_groups_in_order(make_controller, start_engine):
    engine = Engine(length=lambda seed: 20 + seed % 30)
    controller = make_controller(start_engine(engine), batch=4)
    seen = []
    groups = controller.collect(1, progress=seen.append)
    assert [group.id for group in groups] == [0, 1, 2, 3] and [g.prompt for g in groups] == prompts(4)
    assert all(group.admitted == 1 and len(group.rollouts) == 3 for group in groups)
    for group in groups:
        for rollout, scores in zip(group.rollouts, group.scores, strict=True):
            assert rollout.tokens[-1] == 0 and rollout.finish_reason is FinishReason.STOP
            assert scores["letters"].value == len(rollout.text) == len(rollout.tokens) - 1
    check_tokens(groups, engine)
    controller.mark_consumed(groups, 1)
    metrics = controller.metrics()
    assert metrics["rollout/total_finished"] == 12 and metrics["rollout/waiting"] == 0
    assert metrics["rollout/total_tokens"] == sum(len(r.tokens) for g in groups for r in g.rollouts)


def test_progress_is_reported_while_rollouts_are_written(make_controller, start_engine):
    controller = make_controller(start_engine(Engine(pause=0.1)))
    seen = []
    controller.collect(1, progress=seen.append)
    assert seen and seen[-1].rollouts == 3 and seen[-1].tokens > 0 and seen[-1].tokens_per_second > 0


def test_no_token_is_lost_or_doubled_when_connections_break(make_controller, start_engine):
    engine = Engine(length=lambda seed: 50, broken=lambda number: 7 + number % 5 if number % 4 else None)
    controller = make_controller([start_engine(engine)], batch=4, max_new_tokens=100)
    groups = controller.collect(1)
    assert controller.metrics()["rollout/total_retried"] > 0
    check_tokens(groups, engine)
    for request in engine.requests:
        prefix = len(request["prompt"]) - engine.prompt_length(request["prompt"])
        assert request["max_tokens"] == 100 - prefix


def test_a_dead_engine_is_left_for_a_living_one(make_controller, start_engine):
    engine = Engine()
    controller = make_controller(["http://127.0.0.1:9", start_engine(engine)], batch=4)
    check_tokens(controller.collect(1), engine)


NONSENSE = {
    "a token that no policy has": chunk([104, 2**31], [-1.0, -1.0]),
    "no number": chunk([104], [None]),
    "garbage": b"data: \x1b[2J\n\n",
    "an endless line": b"data: " + b"x" * (17 << 20),
}


@pytest.mark.parametrize("script", NONSENSE.values(), ids=NONSENSE)
def test_an_engine_that_answers_nonsense_does_not_end_the_run(make_controller, start_engine, caplog, script):
    """The good engine is mostly full: without avoiding the other one, a retry would go there again, and be the last."""
    bad, good = Engine(script=[script]), Engine(pause=0.01)
    urls = [start_engine(bad), start_engine(good)]
    groups = make_controller(urls, batch=6, group_size=4, concurrency=2, pool={"probe_interval": 0.02}).collect(1)
    check_tokens(groups, good)
    assert bad.requests and all(urls[0] in line and line.isprintable() for line in retried(caplog)) and retried(caplog)


def retried(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "goes on from token" in record.getMessage()]


def test_rollouts_of_an_engine_that_hangs_go_on_elsewhere(make_controller, start_engine):
    class Hanging(Engine):
        async def control(self, request):
            if self.sent:
                await asyncio.sleep(30)
            return await super().control(request)

    hanging = Hanging(length=lambda seed: 50, pause=30.0)
    engine = Engine(length=lambda seed: 50)
    pool = {"probe_interval": 0.05, "probe_timeout": 0.1, "missed_probes": 2}
    controller = make_controller([start_engine(hanging), start_engine(engine)], batch=2, pool=pool)
    groups = controller.collect(1)
    metrics = controller.metrics()
    assert metrics["rollout/total_moved"] == 3 and metrics["rollout/total_engines_lost"] == 1
    assert metrics["rollout/engine0/up"] == 0 and metrics["rollout/engine1/up"] == 1
    engine.requests += hanging.requests
    check_tokens(groups, engine)


def test_an_engine_started_anew_gets_the_weights_pushed_last(make_controller, start_engine):
    engine = Engine(length=lambda seed: 30)

    def restart(number: int) -> int | None:
        if number == 2:
            engine.version = "default"
        return 10 if number == 2 else None

    engine.broken = restart
    controller = make_controller(start_engine(engine), concurrency=1)
    version = WeightVersion(5, 0, "ab")
    controller._pool.push_weights(Path("/weights/5"), version)
    groups = controller.collect(6)
    check_tokens(groups, engine)
    assert engine.weights == ["/weights/5", "/weights/5"] and engine.version == str(version)
    assert all(segment.version == version for rollout in groups[0].rollouts for segment in rollout.versions)


def test_an_engine_that_stays_dead_ends_the_wait_with_its_error(make_controller):
    pool = {"wait": 0.5, "probe_interval": 0.1}
    controller = make_controller("http://127.0.0.1:9", retries=1, pool=pool)
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9: none of 1 engines was there for 0\.5 s.*ConnectorError"):
        controller.collect(1)
    with pytest.raises(EngineError):
        controller.collect(1)


def test_a_refused_request_is_not_tried_again(make_controller, start_engine):
    engine = Engine(status=400)
    controller = make_controller(start_engine(engine), group_size=2)
    with pytest.raises(EngineError, match="no room"):
        controller.collect(1)
    assert len(engine.requests) <= 2


def test_failing_rewards_mask_their_column_and_never_stop_the_run(make_controller, start_engine):
    class Broken:
        name = "broken"

        async def score(self, prompt, rollouts):
            raise RuntimeError("judge is away")

    class TooFew:
        name = "too few"

        async def score(self, prompt, rollouts):
            return [ComponentScore(1.0)]

    controller = make_controller(start_engine(Engine()), rewards=[Broken(), TooFew()])
    (group,) = controller.collect(1)
    assert [set(scores) for scores in group.scores] == [{"broken", "too few"}] * 3
    assert not any(score.valid for scores in group.scores for score in scores.values())
    assert controller.metrics()["rollout/total_failed_scores"] == 6


def test_a_number_that_cannot_be_a_score_is_masked_counted_and_named(make_controller, start_engine, caplog):
    class Huge:
        name = "huge"

        async def score(self, prompt, rollouts):
            return [ComponentScore(value) for value in (0.5, 1e39, math.nan)]

    controller = make_controller(start_engine(Engine()), rewards=[Huge()])
    (group,) = controller.collect(1)
    assert [scores["huge"].valid for scores in group.scores] == [True, False, False]
    assert controller.metrics()["rollout/total_failed_scores"] == 2
    assert "reward huge: 1e+39 for rollout 0-1 cannot be a score, masked, and 1 more of its group" in caplog.text


def test_truncation_and_stop_strings(make_controller, start_engine):
    controller = make_controller(start_engine(Engine()), max_new_tokens=10, group_size=2)
    (group,) = controller.collect(1)
    assert all(rollout.truncated and len(rollout.tokens) == 10 for rollout in group.rollouts)
    assert controller.metrics()["rollout/total_truncated"] == 2
    controller = make_controller(start_engine(Engine(text="hi</answer>more")), group_size=2, name="b")
    (group,) = controller.collect(1)
    for rollout in group.rollouts:
        assert rollout.text == "hi</answer>" and rollout.stop == "</answer>" and len(rollout.tokens) == 11


@pytest.mark.parametrize("cut", range(9, 20))
def test_a_stop_string_across_a_broken_connection_is_found(make_controller, start_engine, cut):
    """The engine that continues sees the first half of the stop string as prompt, and would write on."""
    engine = Engine(text="0123456789</answer>, and more", delta=1, broken=lambda number: None if number else cut)
    controller = make_controller(start_engine(engine), group_size=2)
    (group,) = controller.collect(1)
    for rollout in group.rollouts:
        assert rollout.text == "0123456789</answer>" and rollout.stop == "</answer>" and len(rollout.tokens) == 19


def test_text_ends_with_its_stop_string():
    assert text_of("a</answer>", "</answer>") == "a</answer>"
    assert text_of("a</answer>\n", "</answer>") == "a</answer>"
    assert text_of("a", "<|user|>") == "a<|user|>"
    assert text_of("a\n", None) == "a\n"


def test_a_close_in_the_middle_keeps_everything_received(make_controller, start_engine):
    engine = Engine(length=lambda seed: 60, pause=0.02)
    url = start_engine(engine)
    controller = make_controller(url, batch=2)
    controller.begin(1)
    wait_for(lambda: engine.sent >= 6 * 6)
    controller.close()
    again = make_controller(url, batch=2)
    sent = len(engine.requests)
    groups = again.collect(1)
    check_tokens(groups, engine)
    continued = [r for r in engine.requests[sent:] if len(r["prompt"]) > engine.prompt_length(r["prompt"])]
    assert len(continued) == 6


def test_recovery_gives_back_what_was_consumed_after_the_checkpoint(make_controller, start_engine):
    engine = Engine()
    url = start_engine(engine)
    controller = make_controller(url, batch=2)
    before = {}
    for step in (1, 2, 3):
        before[step] = controller.collect(step)
        controller.mark_consumed(before[step], step)
        if step == 1:
            controller.checkpoint(1)
    controller.close()
    requests = len(engine.requests)
    again = make_controller(url, batch=2, step=1)
    assert again.collect(2) == before[2]
    again.mark_consumed(before[2], 2)
    assert again.collect(3) == before[3]
    assert len(engine.requests) == requests, "finished rollouts are not written again"
    again.mark_consumed(before[3], 3)
    assert [group.id for group in again.collect(4)] == [6, 7]


def test_groups_whose_prompts_changed_are_replaced_and_counted(make_controller, start_engine):
    url = start_engine(Engine())
    controller = make_controller(url, batch=2)
    controller.collect(1)
    controller.close()
    again = make_controller(url, batch=2, source=lambda place: prompts(place + 1)[place] if place else prompts(9)[8])
    groups = again.collect(1)
    assert [(group.id, group.prompt.id) for group in groups] == [(1, "p1"), (2, "p2")]
    assert again.metrics()["rollout/total_dropped"] == 1


def test_groups_of_another_size_are_replaced_for_that_reason(make_controller, start_engine, caplog):
    url = start_engine(Engine())
    controller = make_controller(url)
    controller.collect(1)
    controller.close()
    again = make_controller(url, group_size=2)
    assert [len(group.rollouts) for group in again.collect(1)] == [2]
    assert "group 0 is dropped: it has 3 rollouts, and a group now has 2" in caplog.text
    assert again.metrics()["rollout/total_dropped"] == 1


def test_engines_run_ahead_and_a_version_update_leaves_them_running(make_controller, start_engine):
    """k = 1: while a step trains, the next batch is written; its rollouts go on under the new weights' name."""
    engine = Engine(length=lambda seed: 60, pause=0.05)
    controller = make_controller(
        start_engine(engine), batch=2, group_size=2, max_staleness=1, admission={"last_step": 3}
    )
    admitted = []
    for step in (1, 2, 3):
        groups = controller.collect(step)
        assert [group.id for group in groups] == [2 * step - 2, 2 * step - 1]
        check_tokens(groups, engine)
        admitted += [group.admitted for group in groups]
        controller.mark_consumed(groups, step)
        time.sleep(0.1)
        engine.version = f"{step}.0."
    assert admitted == [1, 1, 1, 1, 2, 2] and len(engine.requests) == 12, "nothing is written that no step trains"
    assert any(len(rollout.versions) == 2 for group in groups for rollout in group.rollouts)


def test_barren_groups_are_replaced_counted_and_never_written_again(make_controller, start_engine):
    engine = Engine(length=lambda seed: 5)
    url = start_engine(engine)
    settings = {"batch": 2, "barren": lambda group: group.prompt.id in ("p0", "p2"), "admission": {"refills": 8}}
    controller = make_controller(url, **settings)
    groups = controller.collect(1)
    assert [group.id for group in groups] == [1, 3]
    assert controller.metrics()["rollout/total_refilled"] == 2
    controller.close()
    again = make_controller(url, **settings)
    assert again.collect(1) == groups and again.metrics()["rollout/total_refilled"] == 0
    capped = make_controller(url, name="b", batch=2, barren=lambda group: True, admission={"refills": 3})
    assert len(capped.collect(1)) == 2 and capped.metrics()["rollout/total_refilled"] == 3


def test_groups_that_fail_for_good_are_replaced_within_a_budget(make_controller, start_engine):
    class Choosy(Engine):
        async def complete(self, request):
            prompt = (await request.json())["prompt"]
            self.status = 400 if prompt[-2] == ord("0") else 200
            return await super().complete(request)

    url = start_engine(Choosy())
    controller = make_controller(url, batch=2, failed_groups=1)
    assert [group.id for group in controller.collect(1)] == [1, 2]
    assert controller.metrics()["rollout/total_failed_groups"] == 1
    strict = make_controller(url, name="b", batch=2)
    with pytest.raises(EngineError, match="no room"):
        strict.collect(1)


def test_new_reward_components_score_recovered_groups_again(make_controller, start_engine):
    class Constant:
        name = "constant"

        async def score(self, prompt, rollouts):
            return [ComponentScore(2.0)] * len(rollouts)

    url = start_engine(Engine())
    controller = make_controller(url)
    controller.collect(1)
    controller.close()
    again = make_controller(url, rewards=[Constant()])
    assert again.collect(1)[0].scores[0] == {"constant": ComponentScore(2.0)}


def test_a_disk_that_refuses_ends_the_wait(make_controller, start_engine):
    controller = make_controller(start_engine(Engine(pause=0.05)))

    def refuse() -> None:
        raise OSError("disk full")

    controller._journal.commit = refuse
    with pytest.raises(OSError, match="disk full"):
        controller.collect(1)
    del controller._journal.commit


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([97, 0], StreamEnd(FinishReason.STOP)),
        ([97, 1], StreamEnd(FinishReason.STOP, "<|user|>")),
        ([*map(ord, "a</answer>")], StreamEnd(FinishReason.STOP, "</answer>")),
        ([97] * 50, StreamEnd(FinishReason.LENGTH)),
        ([], None),
        ([*map(ord, "</answer")], None),
    ],
)
def test_a_kill_between_the_last_token_and_the_record_of_the_end(tokens, expected):
    class WithSpecialToken(CharTokenizer):
        def encode(self, text):
            return [1] if text == "<|user|>" else super().encode(text)

        def decode(self, ids, skip_special=True):
            return super().decode([i for i in ids if i != 1])

    section = RolloutSection(max_new_tokens=50)
    assert RolloutWriter(None, None, WithSpecialToken(), section).end_of(tokens, section.max_new_tokens) == expected
