"""The simulated run: closed forms against events, conservation, and the rules of the real admission."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from megatron_lwz.http.retry import Failure
from megatron_lwz.planner.simulation import pool
from megatron_lwz.planner.simulation.closed_forms import (
    constant_length_step_seconds,
    engine_bound,
    mean_staleness,
    staleness_in_order,
    synchronous_rollout_seconds,
    trainer_bound,
)
from megatron_lwz.planner.simulation.engine import Decoding
from megatron_lwz.planner.simulation.lengths import Drawn, GroupTokens, Replayed, quantile_of
from megatron_lwz.planner.simulation.outcome import simulate, sum_up
from megatron_lwz.planner.simulation.pool import Engines, Failures
from megatron_lwz.planner.simulation.run import Record, Simulation
from megatron_lwz.planner.simulation.setting import Setting, Trainer, WeightSync
from megatron_lwz.rollout.writer import BACKOFF_SECONDS

MANY = 10_000
"""Slots for everything that is ever admitted."""


def lengths(law: str = "lognormal:400:0.9", *, size: int = 4, seed: int = 0, barren: float = 0.0) -> Drawn:
    return Drawn(quantile_of(law), 4000, 50, size, barren, seed=seed)


def setting(*, slots: int = MANY, count: int = 1, decoding: Decoding = Decoding(0.01), **given: Any) -> Setting:
    known: dict[str, Any] = {"steps": 30, "batch": 6, "trainer": Trainer(1e-4, 0.2), "sync": WeightSync(0.3, 0.4)}
    known |= {"engines": Engines(count, slots, decoding), "rewards": 0.7}
    return Setting(**{**known, **given})


def run(given: Setting, law: Any) -> Record:
    return Simulation(given, law).run()


@pytest.mark.parametrize("slots", [MANY, 24, 7, 1])
@pytest.mark.parametrize("seed", range(3))
def test_a_synchronous_step_is_its_closed_form(slots: int, seed: int) -> None:
    law = lengths(seed=seed)
    given = setting(slots=slots, decoding=Decoding(0.01, 0.002), steps=4)
    for step in run(given, law).steps:
        groups = [law.group(number) for number in step.groups]
        assert step.waited == pytest.approx(synchronous_rollout_seconds(given, groups))
        assert step.trained == pytest.approx(0.2 + 1e-4 * sum(group.tokens for group in groups))
        assert step.seconds - step.waited == pytest.approx(trainer_bound(given, sum(g.tokens for g in groups)))
        assert step.groups == tuple(sorted(step.groups)) and step.waiting == 0
        assert step.unused_tokens < 1e-6


def test_equal_lengths_are_written_in_waves() -> None:
    law = lengths("constant:100")
    for slots, waves in ((24, 1), (23, 2), (12, 2), (8, 3), (1, 24)):
        given = setting(slots=slots, steps=1)
        assert run(given, law).steps[0].waited == pytest.approx(waves * 1.0 + 0.7)


def test_engines_share_the_work_of_a_step_as_slots_do() -> None:
    law = lengths("constant:100", size=2)  # 12 rollouts
    one, two = (setting(slots=slots, count=count, steps=1) for slots, count in ((4, 1), (2, 2)))
    assert run(one, law).steps[0].waited == run(two, law).steps[0].waited == pytest.approx(3.7)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_in_order_every_group_is_as_stale_as_the_closed_form_says(staleness: int) -> None:
    for law in (lengths(), lengths("exponential:50")):
        steps = run(setting(staleness=staleness, slots=9), law).steps
        found = [{number - admitted for admitted in step.admitted} for number, step in enumerate(steps, 1)]
        last = 30 - staleness  # nothing is admitted that no step would train on
        assert found[:last] == [{staleness_in_order(number, staleness)} for number in range(1, last + 1)]
        assert all(max(stale) <= staleness for stale in found)
        assert [group for step in steps for group in step.groups] == list(range(30 * 6))


@pytest.mark.parametrize(("staleness", "over"), [(2, 1.0), (4, 1.5), (3, 3.0), (1, 0.5), (2, None)])
def test_mean_staleness_follows_littles_law_whatever_is_fast(staleness: int, over: float | None) -> None:
    for trainer in (Trainer(0.0), Trainer(1e-2)):
        given = setting(staleness=staleness, over_sampling=over, trainer=trainer, steps=150, batch=2, slots=7)
        found = simulate(given, lengths(size=2))
        assert found.staleness == pytest.approx(mean_staleness(given), rel=0.05)
        assert found.most_staleness <= staleness


@pytest.mark.parametrize("staleness", [0, 1, 2, 5])
@pytest.mark.parametrize("per_token", [1e-6, 4e-4, 4e-3])
def test_equal_lengths_take_the_slower_of_two_cycles(staleness: int, per_token: float) -> None:
    law = lengths("constant:500")
    given = setting(staleness=staleness, trainer=Trainer(per_token, 0.2), steps=100)
    steps = run(given, law).steps
    middle = steps[12 : 12 + 12 * (staleness + 1)]  # whole cycles
    found = sum(step.seconds for step in middle) / len(middle)
    assert found == pytest.approx(constant_length_step_seconds(given, law.group(0)))


@pytest.mark.parametrize("staleness", [0, 1, 2, 4])
def test_in_order_steps_follow_a_recursion_over_the_longest_of_each_batch(staleness: int) -> None:
    law = lengths()
    given = setting(staleness=staleness, sync=WeightSync(0.3), steps=40)
    batches = [[law.group(6 * step + place) for place in range(6)] for step in range(40)]
    begins = [0.0]
    for step, batch in enumerate(batches):
        longest = max(length for group in batch for length in group.responses)
        ready = begins[max(0, step - staleness)] + longest * 0.01 + 0.7
        trained = trainer_bound(given, sum(group.tokens for group in batch))
        begins.append(max(begins[step], ready) + trained)
    found = run(given, law).steps
    assert np.cumsum([step.seconds for step in found]) == pytest.approx(begins[1:])


def test_no_setting_is_faster_than_its_bounds_and_a_large_lag_reaches_them() -> None:
    law = lengths(size=4)
    for per_token in (1e-5, 1e-3):
        fastest = []
        for staleness, over in ((0, None), (1, None), (2, 1.0), (8, None)):
            given = setting(
                slots=8, decoding=Decoding(0.01, 0.001), staleness=staleness, over_sampling=over, steps=60,
                trainer=Trainer(per_token, 0.2),
            )  # fmt: skip
            record = run(given, law)
            groups = [law.group(number) for number in range(60 * 6)]
            bound = max(
                trainer_bound(given, sum(group.tokens for group in groups) / 60),
                engine_bound(given, sum(group.response_tokens for group in groups) / 60),
            )
            found = sum_up(record, given)
            assert found.step_seconds > bound * (1 - 0.02)  # the last steps have no load while the engines write
            fastest.append(found.step_seconds / bound)
        assert fastest[0] == max(fastest) and fastest[-1] < 1.05


def test_the_same_numbers_give_the_same_run_and_other_seeds_another() -> None:
    failing = replace(setting().engines, failures=Failures(20.0, 5.0), count=2, slots=10)
    given = setting(engines=failing, staleness=2, over_sampling=1.0)
    assert simulate(given, lengths()) == simulate(given, lengths())
    assert simulate(given, lengths()) != simulate(given, lengths(seed=1))
    assert simulate(given, lengths()) != simulate(replace(given, seed=1), lengths())


@pytest.mark.parametrize("over", [None, 1.0])
@pytest.mark.parametrize("failures", [None, Failures(30.0, 5.0)])
def test_every_admitted_group_is_trained_once_or_replaced_and_no_token_is_lost(
    over: float | None, failures: Failures | None
) -> None:
    law = lengths(barren=0.3)
    engines = Engines(2, 10, Decoding(0.01), prefill=2000.0, failures=failures)
    given = setting(engines=engines, staleness=2, over_sampling=over, refills=12, steps=40)
    record = run(given, law)
    trained = [group for step in record.steps for group in step.groups]
    assert len(trained) == 40 * 6 == len(set(trained))
    assert set(record.admitted) == set(trained) | set(record.replaced) and record.replaced
    assert not set(trained) & set(record.replaced)
    written = sum(group.response_tokens for group in record.admitted.values())
    assert record.written == pytest.approx(written), "what was written before a failure is kept and not written again"
    assert (record.failures > 0) == (record.moved > 0) == (record.moved_tokens > 0) == (failures is not None)


def test_groups_without_variance_are_replaced_within_the_limit_and_cost_no_training() -> None:
    law = Replayed([GroupTokens(0, (100,), barren=number % 2 == 1) for number in range(2)])
    for refills, replaced in ((0, 0), (2, 2), (100, 5)):
        given = setting(refills=refills, steps=1)
        record = run(given, law)
        kept = [group for group in record.steps[0].groups if not record.admitted[group].barren]
        assert len(record.replaced) == replaced
        assert record.steps[0].trained == pytest.approx(0.2 + 1e-4 * 100 * len(kept))
    assert run(setting(keeps_barren=True, steps=1), law).steps[0].trained == pytest.approx(0.2 + 1e-4 * 600)


def test_over_sampling_trains_short_texts_first_and_order_does_not() -> None:
    found = {
        over: simulate(setting(staleness=2, over_sampling=over, slots=24), lengths()).length_gap for over in (None, 1.0)
    }
    assert found[None] == 0.0 < found[1.0]


def test_training_on_parts_waits_only_for_the_last_one() -> None:
    law = lengths()
    whole, parts = (run(setting(accumulate=n, trainer=Trainer(2e-3)), law).steps for n in (0, 1))
    for one, other in zip(whole, parts, strict=True):
        assert set(one.groups) == set(other.groups) and one.trained == pytest.approx(other.trained)
        assert other.seconds < one.seconds


def test_tokens_are_one_step_staler_for_each_sync_between_writing_and_training() -> None:
    law = Replayed([GroupTokens(0, (100,))])
    # W = 1 s of writing, T = 10 s: with k = 1 a batch is written at the beginning of the step before its own
    given = setting(staleness=1, batch=1, trainer=Trainer(0.0, 10.0), sync=WeightSync(0.0), rewards=0.0, steps=50)
    assert simulate(given, law).token_staleness == pytest.approx(49 / 50)
    # T = 0.25 s: two batches at a time are written for 1 s; the weights change 0.25 s after their begin, and 0.5 s
    quick = replace(given, trainer=Trainer(0.0, 0.25), steps=400)
    record = run(quick, law)
    assert record.seconds / 400 == pytest.approx(1.25 / 2, rel=0.01)
    assert 0 < sum_up(record, quick).token_staleness < 1


def test_a_failure_costs_the_repair_where_there_is_one_engine_and_less_where_there_are_more() -> None:
    law = lengths("constant:400")
    calm = setting(steps=100)
    alone = setting(engines=replace(calm.engines, failures=Failures(100.0, 20.0)), steps=100)
    record = run(alone, law)
    assert record.failures > 1
    lost = record.seconds - run(calm, law).seconds
    assert 0 < lost <= record.failures * (20.0 + pool.RETRY_SECONDS) * 1.5
    several = replace(alone.engines, count=4)
    shared = run(replace(alone, engines=several), law)
    assert shared.failures > record.failures and shared.seconds < record.seconds


def test_a_moved_rollout_waits_as_long_as_the_writer_does() -> None:
    assert BACKOFF_SECONDS[Failure.CONNECTION] == pool.RETRY_SECONDS


def test_groups_prefer_the_engine_of_their_first_rollout() -> None:
    law = lengths("constant:100", size=3)
    begun: list[tuple[int, int]] = []
    simulation = Simulation(setting(slots=3, count=2, batch=2, steps=1), law)
    for number, engine in enumerate(simulation._pool.engines):
        begin = engine.begin
        engine.begin = lambda stream, reading, number=number, begin=begin: (  # type: ignore[method-assign]
            begun.append((stream.group, number)), begin(stream, reading)
        )  # fmt: skip
    simulation.run()
    assert Counter(begun) == {(0, 0): 3, (1, 1): 3}


def test_laws_have_the_mean_that_is_asked_for_and_are_cut() -> None:
    for law in ("constant:300", "uniform:300", "exponential:300", "lognormal:300:0.5"):
        drawn = Drawn(quantile_of(law), 10**6, 10, 8)
        assert drawn.mean == pytest.approx(300, rel=0.01)
        seen = [length for number in range(400) for length in drawn.group(number).responses]
        assert np.mean(seen) == pytest.approx(300, rel=0.05)
        assert all(0 < length <= 100 for length in Drawn(quantile_of(law), 100, 10, 8).group(0).responses)
    assert lengths().group(5) == lengths().group(5) != lengths().group(6)


def test_what_is_cut_costs_no_training_where_it_is_masked() -> None:
    law = Drawn(quantile_of("constant:300"), 100, 10, 2, masks=True)
    assert law.group(0) == GroupTokens(10, (100, 100), masked=220)
    assert run(setting(steps=1), law).steps[0].trained == pytest.approx(0.2)
    assert run(setting(steps=1), replace(law, masks=False)).steps[0].trained == pytest.approx(0.2 + 1e-4 * 6 * 220)


@pytest.mark.parametrize(
    ("law", "said"),
    [
        ("normal:3", "unknown law 'normal': choose one of constant:N"),
        ("lognormal:3", "write lognormal:MEAN:SIGMA"),
        ("constant:x", "write constant:N"),
        ("uniform:-1", "with numbers above 0"),
    ],
)
def test_a_law_that_cannot_be_read_says_how_to_write_it(law: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        quantile_of(law)
