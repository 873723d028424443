"""A run ends in time: what is a moment, and when the last step must be the last."""

from __future__ import annotations

import time

import pytest

from megatron_lwz.config import validate
from megatron_lwz.config.moment import seconds_until
from megatron_lwz.distributed import exchange, termination
from megatron_lwz.errors import ConfigError, Interrupted, Resumable
from megatron_lwz.rollout.progress import Progress
from megatron_lwz.training import deadline
from megatron_lwz.training.deadline import FIRST_SAVE_SECONDS, Deadline

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3h50m", 13_800),
        ("90s", 90),
        ("1d", 86_400),
        ("2027-01-15T08:00:30Z", 30),
        ("2027-01-15T09:00:30+01:00", 30),
        ("slurm", 600),
    ],
)
def test_moments(text: str, seconds: float) -> None:
    assert validate({"run": {"must_save_by": text}}).run.must_save_by == text
    assert seconds_until(text, now=NOW, job_end=str(int(NOW) + 600)) == seconds


@pytest.mark.parametrize(
    ("text", "said"), [("soon", "give a duration"), ("", "give a duration"), ("2027-01-15T08:00:00", "time zone")]
)
def test_what_is_no_moment_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"run.must_save_by.*{said}"):
        validate({"run": {"must_save_by": text}})


def test_a_moment_that_is_over_or_unknown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    for text, said in (("2001-01-01T00:00:00Z", "is over already"), ("slurm", "SLURM_JOB_END_TIME is not set")):
        with pytest.raises(ConfigError, match=said):
            Deadline(validate({"run": {"must_save_by": text}}))


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(deadline, "time", self)
        monkeypatch.setattr(exchange, "largest", lambda value: value)

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()


def steps_taken(
    clock: Clock, must_save_by: str | None, *, step: float, save: float | None
) -> tuple[list[int], Deadline]:
    made = Deadline(validate({"run": {"must_save_by": must_save_by}, "training": {"steps": 10}}))
    taken = []
    for number in made.steps(2):
        clock.now += step
        taken.append(number)
        made.reached(number, save)
    return taken, made


def test_the_last_step_leaves_time_for_another_one_and_two_saves(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    clock = Clock(monkeypatch)
    taken, made = steps_taken(clock, "1000s", step=200, save=100)
    assert taken == [3, 4, 5]  # after 600 s: 200 + 2 × 100 would just be too late
    with pytest.raises(Resumable, match=r"after step 5 of 10 \(run.must_save_by = 1000s\): the same command goes on"):
        made.check(tmp_path, 5)
    clock.now = 0
    assert steps_taken(clock, f"{int(3 * FIRST_SAVE_SECONDS)}s", step=10, save=None)[0] == list(range(3, 8))


def test_a_run_that_comes_to_its_end_has_nothing_to_go_on_with(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    taken, made = steps_taken(Clock(monkeypatch), "81s", step=10, save=0)
    assert taken == list(range(3, 11))
    made.check(tmp_path, 10)


def test_sigusr1_ends_the_run_after_its_step(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(termination, "save_requested", lambda: clock.now >= 25)
    taken, made = steps_taken(clock, None, step=10, save=1000)
    assert taken == [3, 4, 5]
    with pytest.raises(Resumable, match="SIGUSR1"):
        made.check(tmp_path, 5)


def test_a_wait_for_rollouts_ends_when_two_saves_would_just_be_done(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    clock, posted = Clock(monkeypatch), set[str]()
    monkeypatch.setattr(exchange, "posted", posted.__contains__)
    monkeypatch.setattr(exchange, "post", posted.add)
    monkeypatch.setattr(exchange, "broadcast_json", lambda value: value)
    made = Deadline(validate({"run": {"must_save_by": "1000s"}, "training": {"steps": 10}}))
    shown: list[Progress] = []
    wait, progress = made.interrupting(shown.append), Progress(0, 8, 0, 0.0)
    steps = made.steps(0)

    def waits_until(step: int) -> float:
        made.begin_wait(f"rollouts/0/{step}")
        while clock.now < 2000:
            try:
                wait(progress)
            except Interrupted:
                return clock.now
            clock.now += 1
        raise AssertionError("it waits for ever")

    assert next(steps) == 1 and waits_until(1) == 1000, "there is nothing to save before the first step"
    clock.now = 100
    assert not made.end_wait(interrupted=False) and not made.reached(1, 50) and next(steps) == 2
    assert waits_until(2) == 900 and len(shown) > 1800
    assert made.end_wait(interrupted=True)
    wait(progress)  # nobody waits for a step: evaluations end as ever
    with pytest.raises(Resumable, match=r"saved and stopped after step 1 of 10 \(run.must_save_by = 1000s\)"):
        made.check(tmp_path, 1)
    with pytest.raises(Resumable, match="stopped with its rollouts kept, before step 1 of 10"):
        made.check(tmp_path, 0)
    assert not list(steps)


def test_a_signal_to_a_rank_that_waits_ends_the_wait_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    posted = set[str]()
    monkeypatch.setattr(exchange, "posted", posted.__contains__)
    monkeypatch.setattr(exchange, "post", posted.add)
    made = Deadline(validate({}))
    wait = made.interrupting(lambda _: None)
    made.begin_wait("rollouts/0/1")
    made.meanwhile()
    wait(Progress(0, 8, 0, 0.0))
    with monkeypatch.context() as inside:
        inside.setattr(termination, "save_requested", lambda: True)
        made.meanwhile()
    with pytest.raises(Interrupted):
        wait(Progress(0, 8, 0, 0.0))
