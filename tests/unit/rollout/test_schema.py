"""Journals that older releases wrote are read as they are, and lose no row when a run takes them up."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.rollout.curriculum import Begun, Draw, Outcome
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.journal_check import UnusableJournal, check_journal
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.rollout.length_book import ZERO_VARIANCE
from megatron_lwz.rollout.lengths import GroupLengths, RolloutLength
from megatron_lwz.rollout.schema import APPLICATION_ID, SCHEMA_VERSION, pack_logprobs, pack_tokens, prompt_to_json
from megatron_lwz.types import Alarm, ComponentScore, Prompt
from tests.support.journal_groups import PROMPT as ASKED
from tests.support.journal_groups import complete, group

VERSION_1 = """
CREATE TABLE groups (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, prompt TEXT NOT NULL, prompt_tokens BLOB NOT NULL,
    admitted INTEGER NOT NULL, size INTEGER NOT NULL
);
CREATE TABLE deltas (
    group_id INTEGER NOT NULL, rollout INTEGER NOT NULL, start INTEGER NOT NULL,
    tokens BLOB NOT NULL, logprobs BLOB NOT NULL, version TEXT NOT NULL,
    PRIMARY KEY (group_id, rollout, start)
) WITHOUT ROWID;
CREATE TABLE finished (
    group_id INTEGER NOT NULL, rollout INTEGER NOT NULL,
    reason TEXT NOT NULL, stop TEXT, text TEXT NOT NULL,
    PRIMARY KEY (group_id, rollout)
) WITHOUT ROWID;
CREATE TABLE scores (
    group_id INTEGER NOT NULL, rollout INTEGER NOT NULL, component TEXT NOT NULL,
    value REAL, valid INTEGER NOT NULL, details TEXT NOT NULL, version TEXT NOT NULL,
    PRIMARY KEY (group_id, rollout, component)
) WITHOUT ROWID;
CREATE TABLE consumed (group_id INTEGER PRIMARY KEY, step INTEGER NOT NULL);
CREATE TABLE dropped (group_id INTEGER PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE checkpoints (step INTEGER PRIMARY KEY);
CREATE TABLE trained (step INTEGER PRIMARY KEY, micro_batches TEXT NOT NULL);
"""
ADDED_BY_VERSION_2 = """
CREATE TABLE excluded (
    group_id INTEGER NOT NULL, rollout INTEGER NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (group_id, rollout)
) WITHOUT ROWID;
CREATE TABLE alarms (
    group_id INTEGER NOT NULL, rollout INTEGER NOT NULL, position INTEGER NOT NULL, rule TEXT NOT NULL,
    stopped INTEGER NOT NULL, scores TEXT NOT NULL,
    PRIMARY KEY (group_id, rollout, position, rule)
) WITHOUT ROWID;
INSERT INTO excluded VALUES (0, 0, 'truncated');
INSERT INTO alarms VALUES (0, 0, 2, 'loop', 0, '{}');
"""
PROMPT = Prompt("a", "写作")


def old_journal(path: Path, version: int) -> None:
    """Group 0 was trained at step 1, group 1 at step 2 after the last checkpoint; group 2 is unfinished, 3 was dropped."""
    with closing(sqlite3.connect(path)) as db:
        tables = VERSION_1.replace("micro_batches", "group_ids") if version == 3 else VERSION_1
        db.executescript(tables + (ADDED_BY_VERSION_2 if version >= 2 else ""))
        for group in range(4):
            row = (group, "training", prompt_to_json(PROMPT), pack_tokens((5, 6)), 1, 1)
            db.execute("INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?)", row)
            row = (group, 0, 0, pack_tokens((1, 2, group)), pack_logprobs((-0.5, -1.0, 0.0)), "0.0.")
            db.execute("INSERT INTO deltas VALUES (?, ?, ?, ?, ?, ?)", row)
            if group != 2:
                db.execute("INSERT INTO finished VALUES (?, 0, 'length', NULL, 'text')", (group,))
                db.execute("INSERT INTO scores VALUES (?, 0, 'length', 0.25, 1, '{\"words\": 2.0}', 'v9')", (group,))
        db.executescript(
            "INSERT INTO consumed VALUES (0, 1), (1, 2); INSERT INTO dropped VALUES (3, 'failed');"
            "INSERT INTO checkpoints VALUES (1); INSERT INTO trained VALUES (1, '[0]'), (2, '[1]');"
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version}; PRAGMA journal_mode = DELETE;"
        )


def check_reader(reader: JournalReader, version: int) -> None:
    groups = list(reader.groups())
    assert [group.id for group in groups] == [0, 1, 3]
    assert groups[1].rollouts[0].tokens == (1, 2, 1) and groups[1].rollouts[0].logprobs == (-0.5, -1.0, 0.0)
    assert groups[1].scores == ({"length": ComponentScore(0.25, True, {"words": 2.0}, "v9")},)
    assert groups[0].rollouts[0].alarms == ((Alarm("loop", 2),) if version >= 2 else ())
    assert reader.consumed() == {0: 1, 1: 2} and reader.checkpoints() == [1]
    assert [reader.trained_order(step) for step in (1, 2, 3)] == [[0], [1], None]
    reason = "truncated" if version >= 2 else None
    assert next(reader.lengths()) == GroupLengths(0, 1, 1, None, (RolloutLength(3, "length", reason),))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_journal_of_an_older_version_is_read_unchanged_and_taken_up_with_all_its_rows(tmp_path, version):
    path = tmp_path / "journal"
    old_journal(path, version)
    before = hashlib.sha256(path.read_bytes()).digest()
    with JournalReader(path) as reader:
        check_reader(reader, version)
    assert hashlib.sha256(path.read_bytes()).digest() == before and [*tmp_path.iterdir()] == [path]

    with JournalReader(path) as reader:
        journal = Journal(path)
        check_reader(reader, version)  # opened before the journal was brought up to date, asked afterwards
    assert journal.orders(after=0) == {1: [0], 2: [1]}
    assert journal.rewind(1) == 1
    returned, unfinished = journal.open_groups()
    assert (returned.id, unfinished.id, unfinished.drafts[0].tokens) == (1, 2, [1, 2, 2])
    journal.record_order(3, [1, 2])
    journal.close()
    with JournalReader(path) as reader:
        assert [reader.trained_order(step) for step in (1, 2, 3)] == [[0], [1], [1, 2]]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        fresh = tmp_path / "fresh"
        Journal(fresh).close()
        with closing(sqlite3.connect(fresh)) as new:
            columns = "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c ORDER BY m.name, c.cid"
            assert db.execute(columns).fetchall() == new.execute(columns).fetchall(), "as if it were written today"


CURRICULUM = "DROP TABLE draws; DROP TABLE outcomes; DROP TABLE stages;"
"""What came with version 6."""


def test_a_journal_of_version_4_keeps_its_rows_and_gets_the_table_of_advantages(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.exclude(3, {0: "truncated"})
    journal.close()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(f"{CURRICULUM} DROP TABLE advantages; PRAGMA user_version = 4; PRAGMA journal_mode = DELETE;")
    check_journal(path, 0)
    journal = Journal(path)
    journal.note_advantages(3, [(1.5, {"length": 1.5}), (float("nan"), {})])
    journal.note_advantages(3, [(-0.5, {"length": -1.0, "format": 0.5}), (float("nan"), {})])
    journal.close()
    check_journal(path, 0)
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT group_id, rollout, value, parts FROM advantages").fetchall()
        assert rows == [(3, 0, -0.5, '{"length": -1.0, "format": 0.5}'), (3, 1, None, "{}")]
        assert db.execute("SELECT reason FROM excluded").fetchall() == [("truncated",)]
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_a_journal_of_version_5_keeps_its_rows_and_gets_the_tables_of_the_curriculum(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.note_advantages(3, [(1.5, {"length": 1.5})])
    journal.close()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(f"{CURRICULUM} PRAGMA user_version = 5; PRAGMA journal_mode = DELETE;")
    check_journal(path, 0)
    journal = Journal(path)
    journal.note_stage(Begun(1, "short", None))
    for number in (0, 1, 2):
        journal.note_draw(Draw(number, ASKED.id, 1, "short", 0, 50))
    for number in (0, 1):  # the kill came between the draw of group 2 and its admission
        complete(journal, group(number))
        journal.note_outcome(Outcome(number, 1 + number, 0.5, None))
    journal.consume([0], 1)
    journal.drop(1, ZERO_VARIANCE)
    journal.commit()
    found = journal.history(0)
    assert found.draws == [Draw(number, ASKED.id, 1, "short", 0, 50) for number in (0, 1)]
    assert found.outcomes == [Outcome(1, 2, 0.5, None)], (
        "who was replaced stays so; a step after the checkpoint is repeated"
    )
    assert found.stages == [] and journal.history(1).stages == [Begun(1, "short", None)]
    assert [outcome.group for outcome in journal.history(1).outcomes] == [0, 1]
    journal.close()
    check_journal(path, 0)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT value FROM advantages").fetchall() == [(1.5,)]
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        db.execute("UPDATE outcomes SET success = 0.75 WHERE group_id = 1")
        db.commit()
    with pytest.raises(UnusableJournal, match="table outcomes, group_id 1"):
        check_journal(path, 0)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE outcomes SET success = 0.5 WHERE group_id = 1")
        db.execute("UPDATE groups SET prompt = '[]' WHERE id = 0")
        db.commit()
    journal = Journal(path)
    with pytest.raises(DataError, match="group 0 is not as it was written"):
        journal.history(1)
    journal.close()
