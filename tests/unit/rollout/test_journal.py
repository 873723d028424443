from __future__ import annotations

import math
import os
import platform
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.rollout.drafts import Draft
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.journal_check import check_journal
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.types import ComponentScore, VersionSegment
from tests.support.files import contents
from tests.support.journal_groups import PROMPT, V0, V1, complete, end, group, write
from tests.support.paths import ROOT


def test_what_was_committed_is_read_back_exactly(tmp_path):
    journal, written = Journal(tmp_path / "j"), group()
    journal.admit(written)
    first, second = written.drafts
    write(journal, first, (1, 2))
    write(journal, first, (3,))
    write(journal, first, (4,), V1)
    journal.commit()
    write(journal, first, (2**31 - 1,), V1)
    end(journal, first)
    journal.close()
    (read,) = Journal(tmp_path / "j").open_groups()
    assert read == written
    assert read.drafts[0].versions == [VersionSegment(0, V0), VersionSegment(3, V1)]
    assert second.reason is None and not read.finished


def test_deltas_between_commits_share_a_row(tmp_path):
    journal, written = Journal(tmp_path / "j"), group()
    for i in range(50):
        write(journal, written.drafts[0], (i,))
    journal.commit()
    rows = sqlite3.connect(tmp_path / "j").execute("SELECT start, length(tokens) FROM deltas").fetchall()
    assert rows == [(0, 200)]
    journal.close()


def test_only_a_commit_makes_rows_durable(tmp_path):
    """A process that dies without close loses exactly what no commit held."""
    script = f"""
import os
from pathlib import Path
from megatron_lwz.rollout.journal import Journal
from tests.support.journal_groups import group, write
journal, written = Journal(Path({str(tmp_path / "j")!r})), group()
journal.admit(written)
write(journal, written.drafts[0], (1, 2, 3))
journal.commit()
write(journal, written.drafts[0], (4, 5))
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    (read,) = Journal(tmp_path / "j").open_groups()
    assert read.drafts[0].tokens == [1, 2, 3]


def test_rewind_returns_groups_consumed_after_the_checkpoint(tmp_path):
    journal = Journal(tmp_path / "j")
    for number in range(3):
        complete(journal, group(number))
        journal.consume([number], step=number + 1)
        journal.mark_checkpoint(number + 1)
    journal.record_order(3, [[0, 1]])
    journal.commit()
    assert journal.rewind(2) == 1
    (read,) = journal.open_groups()
    assert read.id == 2 and read.finished and read.scored_by({"length"}) and not read.scored_by({"format"})
    with JournalReader(tmp_path / "j") as reader:
        assert reader.consumed() == {0: 1, 1: 2} and reader.checkpoints() == [1, 2]
        assert reader.trained_order(3) == [[0, 1]] and reader.trained_order(9) is None
        assert [found.id for found in reader.groups()] == [0, 1, 2]
        (second,) = reader.groups(consumed_at=2)
        assert second.scores[0]["length"] == ComponentScore(0.25, True, {"words": 2.0}, "v9")
        assert second.rollouts[0].text == "text" and second.prompt == PROMPT
    journal.drop(2, "test")
    assert journal.open_groups() == [] and journal.next_id("training") == 3 and journal.next_id("evaluation") == -1
    journal.close()


def test_invalid_scores_without_a_number_survive(tmp_path):
    journal, written = Journal(tmp_path / "j"), group(size=1)
    complete(journal, written)
    journal.score(0, [{"judge": ComponentScore(math.nan, valid=False)}])
    (read,) = journal.open_groups()
    assert set(read.scores[0]) == {"judge"} and math.isnan(read.scores[0]["judge"].value)
    journal.close()


def test_readers_see_a_running_journal(tmp_path):
    journal = Journal(tmp_path / "j")
    complete(journal, group())
    with JournalReader(tmp_path / "j") as reader:
        assert list(reader.groups()) == []
        journal.commit()
        assert len(list(reader.groups())) == 1
    journal.close()


def test_exclusive_journal_is_read_by_snapshot_and_leaves_one_file(tmp_path):
    journal = Journal(tmp_path / "j", exclusive=True)
    complete(journal, group())
    journal.commit()
    assert not (tmp_path / "j-shm").exists()
    with pytest.raises(DataError, match="cannot read the journal"):
        JournalReader(tmp_path / "j")
    journal.snapshot(tmp_path / "copy")
    with JournalReader(tmp_path / "copy") as reader:
        assert len(list(reader.groups())) == 1
    journal.close()
    assert {path.name for path in tmp_path.iterdir()} == {"j", "j.lock", "copy"}
    with JournalReader(tmp_path / "j") as reader:
        assert len(list(reader.groups())) == 1


def test_threads_lose_nothing(tmp_path):
    journal, written = Journal(tmp_path / "j"), group(size=4)
    journal.admit(written)

    def work(draft: Draft) -> None:
        for i in range(300):
            write(journal, draft, (i,))
            if i % 50 == 0:
                journal.commit()

    threads = [threading.Thread(target=work, args=(draft,)) for draft in written.drafts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (read,) = journal.open_groups()
    assert all(draft.tokens == list(range(300)) for draft in read.drafts)
    journal.close()


def test_other_schema_versions_are_refused(tmp_path):
    Journal(tmp_path / "j").close()
    with closing(sqlite3.connect(tmp_path / "j")) as db:
        db.execute("PRAGMA user_version = 99")
    for open_it in (check_journal, Journal, JournalReader):
        with pytest.raises(DataError, match="journal schema 99, this release reads 1"):
            open_it(tmp_path / "j")


def test_other_files_are_refused(tmp_path):
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE t (x)")
    (tmp_path / "text").write_text("not a database, but long enough to be taken for one" * 99)
    for open_it in (check_journal, Journal):
        with pytest.raises(DataError, match="not a rollout journal"):
            open_it(tmp_path / "other")
        with pytest.raises(DataError, match="not a database"):
            open_it(tmp_path / "text")
    with pytest.raises(DataError, match="no journal there"):
        JournalReader(tmp_path / "missing")


def test_a_second_process_cannot_write(tmp_path):
    journal = Journal(tmp_path / "j")
    script = f"from pathlib import Path; from megatron_lwz.rollout.journal import Journal; Journal(Path({str(tmp_path / 'j')!r}))"
    second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert second.returncode != 0 and f"process {os.getpid()} on {platform.node()} writes this journal" in second.stderr
    journal.close()


def test_a_check_before_the_start_touches_no_file(tmp_path):
    check_journal(tmp_path / "j")
    journal = Journal(tmp_path / "j")
    complete(journal, group())
    journal.close()
    with JournalReader(tmp_path / "j"):
        before = contents(tmp_path)
        check_journal(tmp_path / "j")
        assert contents(tmp_path) == before


def test_a_failed_commit_keeps_its_rows(tmp_path):
    journal, written = Journal(tmp_path / "j"), group()
    journal.admit(written)
    blocker = sqlite3.connect(tmp_path / "j", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    journal._db.execute("PRAGMA busy_timeout = 1")
    with pytest.raises(DataError, match="locked"):
        journal.commit()
    blocker.execute("ROLLBACK")
    assert [found.id for found in journal.open_groups()] == [0]
    journal.close()


def test_a_number_that_cannot_be_a_score_is_masked_when_a_journal_holds_it(tmp_path):
    journal = Journal(tmp_path / "j")
    complete(journal, group())
    journal.close()
    with closing(sqlite3.connect(tmp_path / "j")) as db:
        db.execute("UPDATE scores SET value = 1e39 WHERE rollout = 1")  # as earlier releases wrote it
        db.commit()
    with JournalReader(tmp_path / "j") as reader:
        (found,) = reader.groups()
    assert [scores["length"].valid for scores in found.scores] == [True, False]
    journal = Journal(tmp_path / "j")
    (resumed,) = journal.open_groups()
    assert [scores["length"].valid for scores in resumed.scores] == [True, False]
    journal.close()


def test_a_still_reader_sees_one_state_while_the_run_writes_and_needs_no_tokens(tmp_path):
    journal = Journal(tmp_path / "j")
    for number in (0, 1):
        admitted = group(number)
        journal.admit(admitted)
        for draft in admitted.drafts:
            write(journal, draft, (1, 2))
            end(journal, draft)
        journal.commit()
        if number == 0:
            reader = JournalReader(tmp_path / "j")
            still = reader.still()
            still.__enter__()
            (before,) = reader.texts([0])
    assert [rollout.tokens for rollout in before.rollouts] == [(), ()]
    assert [rollout.text for rollout in before.rollouts] == ["text", "text"]
    journal.score(0, [{"r": ComponentScore(1.0)}] * 2)
    journal.consume([0], 1)
    journal.commit()
    assert len(list(reader.groups())) == 1 and (reader.consumed(), reader.scored()) == ({}, [])
    still.__exit__(None, None, None)
    assert len(list(reader.groups())) == 2 and (reader.consumed(), reader.scored()) == ({0: 1}, [0])
    reader.close()
    journal.close()
