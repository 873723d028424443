"""What a run says about its lengths, from a real journal: metrics, warnings, rewind and resume."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from megatron_lwz.config.lengths import LengthsSection
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.rollout.length_book import LengthBook, exclusions
from megatron_lwz.rollout.lengths import GroupLengths, RolloutLength, sample
from megatron_lwz.types import ComponentScore, FinishReason, Group, Prompt, Rollout, TokenDelta, WeightVersion

SECTION = LengthsSection()


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "j")
    yield opened
    opened.close()


def admit(journal: Journal, number: int, step: int, lengths: list[int], ends: list[FinishReason | None]) -> None:
    """A group with rollouts of these lengths; None: unfinished, and 0 tokens of it: not begun."""
    drafts = [Draft(number, index) for index in range(len(lengths))]
    journal.admit(GroupDraft(number, "training", Prompt(str(number), "text"), (1,), step, drafts))
    for draft, length, end in zip(drafts, lengths, ends, strict=True):
        for part in (length // 2, length - length // 2):
            if part:
                delta = TokenDelta((7,) * part, (-1.0,) * part, WeightVersion(step - 1))
                journal.extend(draft, len(draft.tokens), delta)
                draft.extend(delta)
            if number < 8:  # a row for each part
                journal.commit()
        if end is not None:
            draft.reason = end
            journal.finish(draft)


STOP, LENGTH, GUARD = FinishReason.STOP, FinishReason.LENGTH, FinishReason.GUARD


def test_a_step_says_what_was_sampled_trained_truncated_and_what_waits(journal):
    admit(journal, 0, 1, [10, 20, 30, 40], [STOP, STOP, GUARD, LENGTH])
    admit(journal, 1, 1, [5, 5, 5, 5], [STOP] * 4)
    admit(journal, 2, 1, [100, 0, 8, 8], [None, None, STOP, STOP])
    admit(journal, 3, 2, [11, 22, 0, 33], [None, STOP, None, None])
    admit(journal, 4, 5, [1000], [None])
    journal.exclude(0, {3: "truncated"})
    journal.consume([0], 1)
    journal.drop(1, "zero variance")
    journal.drop(2, "failed")
    journal.commit()
    found = LengthBook(SECTION, staleness=0).measure(1, journal.lengths)
    assert found["length/version"] == 0
    assert (found["length/sampled/rollouts"], found["length/trained/rollouts"]) == (11, 3)
    assert (found["length/trained/mean"], found["length/trained/p50"], found["length/trained/p99"]) == (20, 20, 30)
    assert found["length/sampled/p99"] == 100
    assert (found["length/truncated"], found["length/stopped"], found["length/abandoned"]) == (1 / 11, 1 / 11, 1 / 11)
    shares = {name.rpartition("/")[2]: found[name] for name in found if name.startswith("length/excluded/")}
    assert shares == {
        "truncated": 1 / 11, "zero_variance": 4 / 11, "failed": 3 / 11, "no_score": 0, "prompts_changed": 0, "group_size_changed": 0
    }  # fmt: skip
    assert found["length/gap"] == pytest.approx(6 / 11) and found["length/parted"] == 0, "too few to tell"
    waiting = {name.rpartition("/")[2]: found[name] for name in found if name.startswith("length/waiting/")}
    assert waiting == dict.fromkeys(("rollouts", "mean", "max", "age"), 0), "an earlier process was ahead"
    found = LengthBook(SECTION, staleness=0).measure(3, journal.lengths)
    waiting = {name.rpartition("/")[2]: found[name] for name in found if name.startswith("length/waiting/")}
    assert waiting == {"rollouts": 2, "mean": 22, "max": 33, "age": 1}


def test_a_batch_is_reported_when_the_bound_says_that_it_is_complete(journal):
    book = LengthBook(SECTION, staleness=1)
    for number, step in enumerate((1, 1, 2)):
        admit(journal, number, step, [10 * (number + 1)], [STOP])
    journal.consume([0], 1)
    journal.commit()
    found = book.measure(1, journal.lengths)
    assert "length/version" not in found and found["length/waiting/age"] == 0
    journal.consume([1], 2)
    journal.commit()
    found = book.measure(2, journal.lengths)
    assert found["length/version"] == 0 and found["length/sampled/mean"] == 15
    found = book.measure(3, journal.lengths)
    assert "length/version" not in found, "group 2 is still out: its batch is not compared"


def test_an_unfinished_rollout_counts_as_one_that_is_at_least_as_long():
    trained = tuple(RolloutLength(tokens, "stop") for tokens in (10, 20, 30, 40))
    left = tuple(RolloutLength(tokens, None) for tokens in [25] * 400)
    beyond = (RolloutLength(90, None), RolloutLength(3, "stop"))
    found = sample([GroupLengths(0, 1, 1, None, trained), GroupLengths(1, 1, None, "failed", left + beyond)])
    values, counts = np.unique(found.tokens[4:-2], return_counts=True)
    assert values.tolist() == [30, 40] and 160 < counts[0] < 240
    assert found.tokens[-2:].tolist() == [90, 3]


def test_a_journal_without_the_table_of_exclusions_is_read(tmp_path, journal):
    admit(journal, 0, 1, [4], [STOP])
    journal.consume([0], 1)
    journal.commit()
    journal._db.execute("DROP TABLE excluded")
    with JournalReader(tmp_path / "j") as reader:
        assert list(reader.lengths()) == [GroupLengths(0, 1, 1, None, (RolloutLength(4, "stop"),))]


def write_biased(journal: Journal, steps: int, *, biased_from: int, groups: int = 24) -> None:
    """From a step on, engines lose groups with long texts."""
    noise = np.random.default_rng(3)
    for number in range(steps * groups):
        step = number // groups + 1
        lengths = noise.lognormal(3 + noise.normal(0, 0.6), 0.4, 4).astype(int) + 1
        admit(journal, number, step, lengths.tolist(), [STOP] * 4)
        if step >= biased_from and lengths.max() > 40:
            journal.drop(number, "failed")
        else:
            journal.exclude(number, {0: "zero variance"} if noise.random() < 0.05 else {})
            journal.consume([number], step)
    journal.commit()


def test_a_loss_of_long_texts_is_warned_of_once_and_named(journal, caplog):
    write_biased(journal, 6, biased_from=4)
    book = LengthBook(SECTION, staleness=0)
    with caplog.at_level(logging.WARNING):
        rows = [book.measure(step, before(journal, step)) for step in range(1, 7)]
    assert [row["length/parted"] for row in rows] == [0, 0, 0, 0, 1, 1], "24 groups are too few"
    assert rows[4]["length/gap"] > rows[4]["length/gap_window"] > 0.05 and rows[4]["length/gap_mean"] < -3
    (line,) = caplog.messages
    assert line.startswith("step 5: training does not see the lengths that the policy writes")
    assert "'failed'" in line and "rollout.retries" in line and "\n" not in line


def before(journal: Journal, step: int):
    """Reads the journal as it was when `step` was done."""
    return lambda first, skip: [group for group in journal.lengths(first, skip) if group.admitted <= step]


def test_a_resumed_run_says_the_same(tmp_path):
    journal = Journal(tmp_path / "j")
    write_biased(journal, 6, biased_from=4)
    whole = LengthBook(SECTION, staleness=0)
    rows = [whole.measure(step, before(journal, step)) for step in range(1, 7)]
    consumed = {group.id: group.step for group in journal.lengths() if group.step}
    journal.close()
    journal = Journal(tmp_path / "j")
    journal.rewind(4)
    resumed = LengthBook(SECTION, staleness=0)
    for step in (5, 6):
        journal.consume([group for group, used in consumed.items() if used == step], step)
        journal.commit()
        assert resumed.measure(step, before(journal, step)) == rows[step - 1]
    journal.close()


def test_a_long_run_reads_only_the_groups_that_it_compares(journal):
    section = LengthsSection(window=2)
    book = LengthBook(section, staleness=0)
    asked = []

    def read(first, skip):
        groups = journal.lengths(first, skip)
        asked.append([group.id for group in groups])
        return groups

    for step in range(1, 5):
        admit(journal, step - 1, step, [step], [STOP])
        journal.consume([step - 1], step)
        journal.commit()
        book.measure(step, read)
    assert asked == [[0], [1], [2], [3]] and book._first == 3


def test_why_a_rollout_of_a_trained_group_has_no_weight():
    rollouts = tuple(
        Rollout(f"0-{i}", "p", i, (1,), (2,), (-1.0,), (), reason, "") for i, reason in enumerate((STOP, LENGTH, STOP))
    )
    scored = tuple({"length": ComponentScore(0.5)} for _ in rollouts)
    failed = tuple({"length": ComponentScore(0.0, valid=False)} for _ in rollouts)
    group = Group(0, Prompt("p", "text"), rollouts, scored, 1)
    assert exclusions(group, (1.0, 0.0, 1.0), mask_truncated=True) == {1: "truncated"}
    assert exclusions(group, (0.0, 0.0, 0.0), mask_truncated=False) == dict.fromkeys(range(3), "zero variance")
    unscored = Group(0, Prompt("p", "text"), rollouts, failed, 1)
    assert exclusions(unscored, (0.0, 0.0, 0.0), mask_truncated=True) == {0: "no score", 1: "truncated", 2: "no score"}
