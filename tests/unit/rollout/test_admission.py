"""Bounded asynchrony as a state machine: random length laws, failures, filtered groups and kills."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.rollout.admission import Admission, misfit
from megatron_lwz.rollout.length_book import PROMPTS_CHANGED, SIZE_CHANGED
from tests.support import journal_groups
from tests.support.journal_groups import PROMPT


@dataclass
class Law:
    """How groups turn out. A group's fate depends on the seed and its id alone."""

    seed: int
    sigma: float
    failing: float
    barren: float
    kills: float

    def seconds(self, group: int) -> float:
        return min(random.Random(f"{self.seed} {group}").lognormvariate(0, self.sigma), 1000.0)

    def fails(self, group: int) -> bool:
        return random.Random(f"{self.seed} fails {group}").random() < self.failing

    def is_barren(self, group: int) -> bool:
        return random.Random(f"{self.seed} barren {group}").random() < self.barren


@dataclass
class Run:
    """A trainer and its engines as a discrete-event simulation: `width` groups are written at a time."""

    batch: int
    staleness: int
    carried: float | None
    law: Law
    steps: int
    width: int
    refills: float
    admission: Admission = field(init=False)
    batches: list[list[int]] = field(default_factory=list)
    lags: list[int] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    written: dict[int, float] = field(default_factory=dict)
    """Group → seconds of it that are durable."""
    seen: dict[int, int] = field(default_factory=dict)
    """Group → step of its admission."""
    now: float = 0.0

    def __post_init__(self) -> None:
        self.admission = self.start()

    def start(self) -> Admission:
        return Admission(
            self.batch, self.staleness, carried=self.carried, last_step=self.steps, refills=self.refills
        )  # fmt: skip

    def go(self) -> None:
        chance, checkpoint, step = random.Random(self.law.seed), 0, 1
        while step <= self.steps:
            self.begin(step)
            self.collect(step)
            if chance.random() < self.law.kills:
                step = self.kill(checkpoint)
            elif chance.random() < 0.5:
                checkpoint = step
            step += 1

    def begin(self, step: int) -> None:
        self.admission.advance(step)
        self.admit()

    def admit(self) -> None:
        bound = (self.admission.ahead + 1) * self.batch
        while self.admission.slots():
            group = len(self.seen)
            self.admission.admit(group)
            self.seen[group] = self.admission.step
            assert len(self.admission.admitted) <= max(bound, self.most_recovered)
        assert len(self.admission.admitted) <= max(bound, self.most_recovered)

    most_recovered = 0

    def collect(self, step: int) -> None:
        certain: set[int] = set()
        while (taken := self.admission.take()) is None:
            certain = self.still_certain(certain)
            assert self.write(), "deadlock: nothing is written, and no batch can be taken"
        assert len(taken) == self.batch == len(set(taken))
        assert self.still_certain(certain) <= set(taken), "what was handed over early is in the batch"
        assert taken == sorted(taken)
        self.lags += [step - self.seen[group] for group in taken]
        self.batches.append(taken)
        self.admission.trained(taken)
        for _ in range(random.Random(f"{self.law.seed} update {step}").randrange(4)):
            self.write()  # engines go on while the trainer updates

    def write(self) -> bool:
        """Until the next group ends; False: none is written."""
        running = [g for g in self.admission.pending() if self.admission.states[g].value == "running"][: self.width]
        if not running:
            return False
        left = {group: max(0.0, self.law.seconds(group) - self.written.get(group, 0.0)) for group in running}
        passed = min(left.values())
        for group in running:
            self.written[group] = self.written.get(group, 0.0) + passed
        self.end(min(running, key=lambda group: (left[group], group)))
        return True

    def still_certain(self, before: set[int]) -> set[int]:
        """What may be trained on early, now."""
        certain = self.admission.certain()
        assert before <= set(certain), "a group that was handed over early never leaves the batch"
        assert len(certain) == len(set(certain)) <= self.batch
        assert all(self.admission.states[group].value == "ready" for group in certain)
        return set(certain)

    def end(self, group: int) -> None:
        if self.law.fails(group):
            self.admission.give_back(group)
        elif not (self.law.is_barren(group) and self.admission.filter(group)):
            self.admission.finish(group)
            return
        self.gone.add(group)
        self.admit()

    def kill(self, checkpoint: int) -> int:
        """A kill after training, before its checkpoint: all later steps are done again, with what the journal holds."""
        before, self.batches = self.batches, self.batches[:checkpoint]
        self.lags = self.lags[: checkpoint * self.batch]
        trained = {group for batch in self.batches for group in batch}
        self.admission = self.start()
        self.admission.replay = {step: batch for step, batch in enumerate(before, 1) if step > checkpoint}
        for group, admitted in self.seen.items():
            if group not in trained and group not in self.gone:
                self.admission.restore(group, admitted)
        self.most_recovered = len(self.admission.admitted)
        for step in range(checkpoint + 1, len(before) + 1):
            self.begin(step)
            self.collect(step)
        assert self.batches == before, "redone steps train on what they trained on before"
        return len(before)


laws = st.builds(
    Law,
    seed=st.integers(0, 2**32),
    sigma=st.floats(0, 3),
    failing=st.sampled_from([0.0, 0.1, 0.5]),
    barren=st.sampled_from([0.0, 0.2, 0.9, 1.0]),
    kills=st.sampled_from([0.0, 0.2]),
)


@settings(max_examples=150)
@given(
    law=laws,
    batch=st.integers(1, 5),
    staleness=st.integers(0, 4),
    carried=st.none() | st.floats(0.1, 4),
    width=st.integers(1, 12),
    refills=st.integers(0, 10),
)
def test_no_group_is_older_than_the_bound_and_nothing_waits_for_ever(law, batch, staleness, carried, width, refills):
    run = Run(batch, staleness, carried, law, steps=12, width=width, refills=refills)
    run.go()
    trained = [group for taken in run.batches for group in taken]
    assert all(0 <= lag <= staleness for lag in run.lags)
    assert len(trained) == len(set(trained)) == 12 * batch
    assert set(trained) | run.gone == set(run.seen), "no finished group is discarded"
    if carried is None:
        assert trained == sorted(trained)
    if law.failing == law.barren == 0:
        assert set(trained) == set(range(12 * batch)), "no prompt is skipped"


@given(seeds=st.lists(st.integers(0, 999), min_size=2, max_size=2, unique=True), staleness=st.integers(0, 3))
@settings(max_examples=20)
def test_in_order_a_step_trains_on_the_same_groups_whoever_finishes_first(seeds, staleness):
    """Only fates count, not times."""
    runs = []
    for width, sigma in zip(seeds, (0.1, 3.0), strict=True):
        law = Law(5, sigma, 0.1, 0.2, 0.0)
        runs.append(Run(3, staleness, None, law, steps=10, width=1 + width % 9, refills=100))
        runs[-1].go()
    assert runs[0].batches == runs[1].batches


def test_the_formula_alone_would_let_a_straggler_be_overtaken_for_ever():
    """k = 2, B = 1: taking whatever is ready at steps 1 and 2 would leave two groups that are both due at step 3."""
    admission = Admission(1, 2, carried=2.0)
    admission.advance(1)
    for group in range(3):
        assert admission.slots() == 3 - group
        admission.admit(group)
    admission.finish(2)
    assert admission.take() == [2]
    admission.trained([2])
    admission.advance(2)
    admission.admit(3)
    admission.finish(3)
    assert admission.take() is None, "0 and 1 are due at step 3, which trains one group"
    admission.finish(1)
    assert admission.take() == [1]


def test_ready_groups_among_the_oldest_are_certain_and_ready_ones_behind_are_not():
    """B = 2, over-sampling: 2 is ready but 0 and 1 may still be the batch; when 0 fails, 2 is one of the two oldest."""
    admission = Admission(2, 1, carried=1.0)
    admission.advance(1)
    for group in range(4):
        admission.admit(group)
    admission.finish(2)
    assert admission.certain() == []
    admission.finish(1)
    assert admission.certain() == [1] and admission.take() == [1, 2]
    admission.give_back(0)
    assert admission.certain() == [1, 2] == admission.take()


def test_over_sampling_carries_the_slowest_over_within_the_bound():
    admission = Admission(2, 1, carried=0.5)
    admission.advance(1)
    assert admission.slots() == 3
    for group in range(3):
        admission.admit(group)
    admission.finish(2)
    admission.finish(1)
    assert admission.take() == [1, 2]
    admission.trained([1, 2])
    admission.advance(2)
    assert admission.slots() == 2
    admission.admit(3)
    admission.admit(4)
    admission.finish(3)
    admission.finish(4)
    assert admission.take() is None, "group 0 is due now"
    admission.finish(0)
    assert admission.take() == [0, 3]


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_admission_follows_the_formula_and_ends_with_the_run(staleness):
    admission = Admission(4, staleness, last_step=5)
    number = 0
    for step in range(1, 6):
        admission.advance(step)
        while admission.slots():
            admission.admit(number)
            admission.finish(number)
            number += 1
            assert number <= 20
        assert number == min((staleness + step) * 4, 20)
        admission.trained(admission.take())
    assert number == 20


def test_a_run_that_goes_on_with_other_settings_wakes_what_it_needs():
    """The batch grew and the bound shrank: sleepers wake before their step, and the oldest are always taken."""
    admission = Admission(3, 0)
    for group, admitted in enumerate((1, 2, 2, 3)):
        admission.restore(group, admitted)
    assert admission.advance(1) == [0, 1, 2] and admission.slots() == 0
    for group in range(3):
        admission.finish(group)
    assert admission.take() == [0, 1, 2]


@pytest.mark.parametrize(
    ("prompt", "size", "reason", "said"),
    [
        (PROMPT, 2, None, None),
        (PROMPT, 4, SIZE_CHANGED, "it has 2 rollouts, and a group now has 4"),
        (replace(PROMPT, id="b"), 2, PROMPTS_CHANGED, "its place in the order of prompts now has 'b', not 'a'"),
        (replace(PROMPT, length=None, text="new"), 2, PROMPTS_CHANGED, "prompt 'a' has another text, length now"),
    ],
)
def test_a_group_of_the_journal_that_does_not_fit_is_told_apart(prompt, size, reason, said):
    assert misfit(journal_groups.group(), prompt, size) == (None if reason is None else (reason, said))
