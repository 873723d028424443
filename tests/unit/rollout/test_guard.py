"""Rollouts under a guard: where one stops depends on its tokens alone; what was noted survives kills; engines are freed."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.config.guard import GuardSection
from megatron_lwz.rollout.guard import GIVEN, GuardedRollout, given_column, guard_metrics
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.rollout.schema import SCHEMA_VERSION, SUMMED
from megatron_lwz.types import Alarm, ComponentScore, FinishReason, Group, Prompt, Rollout, StreamVerdict
from tests.support.synthetic_engine import Engine


class Marks:
    """A guard that anyone can check: rule `bang` holds from the first "!" on, `ask` from "?" on; "#" closes what is open."""

    def __init__(self, prompt: Prompt | None = None) -> None:
        self._text = ""

    def feed(self, text: str) -> StreamVerdict:
        self._text += text
        rules = tuple(rule for rule, mark in (("bang", "!"), ("ask", "?")) if mark in self._text)
        return StreamVerdict(rules, () if not rules or "#" in self._text else ("letters",))


def section(**settings) -> GuardSection:
    return GuardSection(**{"mode": "on", "interval": 4} | settings)


def guarded(guard: GuardSection, limit: int = 10_000, stops: Sequence[str] = ("</answer>",)) -> GuardedRollout:
    return GuardedRollout(Marks(), guard, decode=decode, stops=stops, ends={0}, limit=limit)


def decode(ids: Sequence[int]) -> str:
    return bytes(i for i in ids if i).decode("utf-8", "replace")


def tokens_of(text: str) -> list[int]:
    return list(text.encode())


def run(one: GuardedRollout, tokens: Sequence[int], sizes: Sequence[int]) -> int | None:
    start = turn = 0
    while start < len(tokens):
        size = sizes[turn % len(sizes)]
        stop = one.take(tokens[start : start + size])
        if stop is not None:
            return stop
        start, turn = start + size, turn + 1
    return None


TEXTS = st.lists(st.sampled_from(["a", "中", "é", "!", "?", "#", "</ans", "</answer>", "😀"]), max_size=20).map("".join)


@settings(max_examples=200)
@given(
    TEXTS, st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 7), st.sampled_from(["on", "observe"])
)
def test_where_a_rollout_stops_depends_on_its_tokens_alone(text, sizes, interval, mode):
    guard = section(interval=interval, mode=mode, scores={})
    cut, whole = guarded(guard), guarded(guard)
    assert run(cut, tokens_of(text), sizes) == run(whole, tokens_of(text), [len(text.encode()) or 1])
    assert cut.alarms == whole.alarms


def test_it_looks_at_multiples_of_the_interval_only():
    assert run(guarded(section()), tokens_of("ab!#ef"), [1]) == 4
    assert run(guarded(section()), tokens_of("abcd!#gh"), [3]) == 8
    assert run(guarded(section()), tokens_of("abcd!#"), [6]) is None, "it ends before the next look"


def test_a_rule_is_noted_once_and_stops_when_everything_is_determined_or_given():
    one = guarded(section())
    assert run(one, tokens_of("abc!abc?abcdabc#"), [5]) == 16
    assert one.alarms == [Alarm("bang", 4), Alarm("ask", 8), Alarm("bang", 16, stopped=True)]
    given_score = guarded(section(scores={"letters": -1.0}))
    assert run(given_score, tokens_of("abc!abcd"), [5]) == 4
    assert given_score.alarms == [Alarm("bang", 4, stopped=True, scores={"letters": -1.0})]
    observed = guarded(section(mode="observe", scores={"letters": -1.0}))
    assert run(observed, tokens_of("abc!abc#"), [5]) is None and observed.alarms == [Alarm("bang", 4)]


def test_a_rollout_that_ends_by_itself_is_not_stopped():
    assert run(guarded(section()), [*tokens_of("a!#"), 0], [9]) is None
    assert run(guarded(section(), limit=4), tokens_of("a!#b"), [9]) is None
    assert run(guarded(section(interval=12)), tokens_of("a!#</answer>"), [12]) is None
    assert run(guarded(section(interval=12), stops=()), tokens_of("a!#</answer>"), [12]) == 12


def test_text_that_may_begin_a_stop_string_is_not_judged():
    """What ends at a stop string is cut there: "<!" is part of "<!>" and would be taken away."""
    one = guarded(section(), stops=["<!>"])
    assert run(one, tokens_of("ab<!"), [4]) is None and one.alarms == []


def rollout(alarms, *, tokens=8, reason=FinishReason.STOP, text="x", index=0) -> Rollout:
    return Rollout(f"r{index}", "p", index, (), (1,) * tokens, (), (), reason, text, None, tuple(alarms))


def group_of(*rollouts) -> Group:
    return Group(0, Prompt("p", "Write."), rollouts, (), 1)


def test_given_scores_stand_in_a_column_and_the_others_are_asked():
    stopped = rollout([Alarm("bang", 8, True, {"letters": -2.0, "judge": None})], reason=FinishReason.GUARD)
    free, own = rollout([Alarm("bang", 4)]), ComponentScore(7.0)
    assert given_column("letters", [stopped, free], [own]) == [ComponentScore(-2.0, version=GIVEN), own]
    assert given_column("judge", [free, stopped], [own]) == [own, ComponentScore(0.0, valid=False, version=GIVEN)]
    assert given_column("format", [stopped, free], [own, own]) == [own, own]


def test_metrics_tell_stopped_observed_and_false_alarms():
    valid = "<think>a</think><answer>b</answer>"
    group = group_of(
        rollout([Alarm("format", 8, True)], reason=FinishReason.GUARD),
        rollout([Alarm("loop", 2), Alarm("format", 8, True, {"length": 0.0})], reason=FinishReason.GUARD),
        rollout([Alarm("loop", 4)], text=valid, tokens=20),
        rollout([Alarm("loop", 4)], tokens=20),
        rollout([]),
    )
    found = guard_metrics([group], GuardSection(mode="on", rules=("format", "loop")), limit=100)
    expected = {
        "format/stopped": 2, "format/spared": 184, "format/observed": 0, "format/after": 0, "format/ended_valid": 0,
        "loop/stopped": 0, "loop/spared": 0, "loop/observed": 3, "loop/after": 38, "loop/ended_valid": 1, "exact": 1,
    }  # fmt: skip
    assert found == {f"rollout/guard/{name}": float(value) for name, value in expected.items()}
    assert guard_metrics([group], GuardSection(), limit=100) == {}


ON = {"guard": GuardSection(mode="on", interval=8, scores={"letters": -1.0})}
TEXT = "abcdefghij klmnop! and so on for ever and ever " + "more " * 30


@pytest.mark.parametrize("delta", [1, 3, 8, 16])
def test_a_stopped_rollout_is_told_apart_scored_as_given_and_frees_the_engine(
    make_controller, start_engine, delta, tmp_path
):
    engine = Engine(text=TEXT, delta=delta, pause=0.01)
    controller = make_controller(start_engine(engine), guards=Marks, group_size=2, **ON)
    (group,) = controller.collect(1)
    for written in group.rollouts:
        assert written.text == TEXT[:24] and len(written.logprobs) == 24
        assert written.finish_reason is FinishReason.GUARD and not written.truncated and written.stop is None
        assert written.alarms == (Alarm("bang", 24, stopped=True, scores={"letters": -1.0}),)
    assert [scores["letters"] for scores in group.scores] == [ComponentScore(-1.0, version=GIVEN)] * 2
    time.sleep(0.3)
    assert engine.sent < 2 * len(TEXT), "the engine goes on writing"
    controller.close()
    with JournalReader(tmp_path / "journal.sqlite") as reader:
        assert next(reader.groups()) == group


@pytest.mark.parametrize("cut", range(20, 30))
def test_where_it_stops_does_not_depend_on_broken_connections(make_controller, start_engine, cut):
    engine = Engine(text=TEXT, delta=5, broken=lambda number: None if number else cut)
    controller = make_controller(start_engine(engine), guards=Marks, group_size=1, **ON)
    (group,) = controller.collect(1)
    assert group.rollouts[0].text == TEXT[:24] and group.rollouts[0].finish_reason is FinishReason.GUARD


@pytest.mark.parametrize("kept", [0, 7, 16, 23, 24])
def test_a_kill_at_any_token_changes_neither_the_stop_nor_what_was_noted(make_controller, start_engine, tmp_path, kept):
    """The journal of a killed run holds `kept` tokens and no end; the run that takes it up stops at the same place."""
    url = start_engine(Engine(text=TEXT))
    first = make_controller(url, guards=Marks, group_size=1, **ON)
    before = first.collect(1)
    first.close()
    journal = sqlite3.connect(tmp_path / "journal.sqlite")
    for table in ("finished", "alarms", "scores"):
        journal.execute(f"DELETE FROM {table}")
    journal.execute(
        f"UPDATE deltas SET tokens = substr(tokens, 1, {4 * kept}), logprobs = substr(logprobs, 1, {4 * kept})"
    )
    journal.execute("DELETE FROM deltas WHERE length(tokens) = 0")
    journal.commit()
    journal.close()
    assert make_controller(url, guards=Marks, group_size=1, **ON).collect(1) == before


def test_an_observed_rollout_ends_as_without_a_guard(make_controller, start_engine):
    url = start_engine(Engine(text=TEXT))
    plain = make_controller(url, group_size=2).collect(1)[0]
    settings = {"guards": Marks, "group_size": 2, "name": "b"}
    observe = GuardSection(mode="observe", interval=8, scores={"letters": -1.0})
    seen = make_controller(url, guard=observe, **settings).collect(1)[0]
    assert [r.tokens for r in seen.rollouts] == [r.tokens for r in plain.rollouts] and seen.scores == plain.scores
    assert all(r.alarms == (Alarm("bang", 24),) and r.finish_reason is FinishReason.STOP for r in seen.rollouts)


def test_a_journal_of_version_1_is_read_and_taken_up(tmp_path):
    Journal(tmp_path / "j").close()
    old = sqlite3.connect(tmp_path / "j")
    old.executescript(
        "DROP TABLE alarms; DROP TABLE excluded; DROP TABLE advantages; ALTER TABLE trained RENAME COLUMN group_ids TO micro_batches;"
        + "".join(
            f"ALTER TABLE {name} DROP COLUMN sum;"
            for name in SUMMED
            if name not in ("alarms", "excluded", "advantages")
        )
        + "PRAGMA user_version = 1;"
    )
    old.close()
    with JournalReader(tmp_path / "j") as reader:
        assert list(reader.groups()) == []
    Journal(tmp_path / "j").close()
    with JournalReader(tmp_path / "j"):
        pass
    db = sqlite3.connect(tmp_path / "j")
    assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,) and db.execute(
        "SELECT count(*) FROM alarms"
    ).fetchone() == (0,)
