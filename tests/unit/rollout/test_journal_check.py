"""A journal that is lost, damaged or not the checkpoint's is refused in one line, or its rows are exactly those written."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.rollout.journal import Journal, take_up
from megatron_lwz.rollout.journal_check import UnusableJournal, check_journal
from megatron_lwz.rollout.journal_reader import JournalReader
from tests.support.files import contents
from tests.support.journal_groups import complete, end, group, write

STEP = 2


def fill(path: Path, *, size: int = 2) -> Journal:
    """Groups 0 and 1 were trained at steps 1 and 2, 2 waits, 3 is unfinished, 4 was dropped."""
    journal = Journal(path)
    for number in range(5):
        if number != 3:
            complete(journal, group(number, size))
    for step in (1, STEP):
        journal.consume([step - 1], step)
        journal.record_order(step, [step - 1])
    unfinished = group(3, size)
    journal.admit(unfinished)
    for draft in unfinished.drafts:
        write(journal, draft, tuple(range(200)))
    end(journal, unfinished.drafts[0])
    journal.drop(4, "failed")
    journal.commit()
    return journal


def content(journal: Journal) -> object:
    """All that a run takes up: with it, the next steps are the same."""
    return journal.open_groups(), journal.orders(after=0), journal.next_id("training")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("journal") / "journal.sqlite"
    fill(path).close()
    return path


@pytest.fixture
def journal(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / "journal.sqlite"))


def test_the_journal_of_the_checkpoint_is_taken_up(journal: Path) -> None:
    for step in (0, 1, STEP):
        check_journal(journal, step)
        take_up(journal, step).close()


def foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (x)")


def of_another_run(path: Path) -> None:
    path.unlink()
    other = Journal(path)
    complete(other, group())
    other.close()


def log_alone(path: Path) -> None:
    path.unlink()
    path.with_name(path.name + "-wal").write_bytes(b"x" * 99)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "is missing, but the checkpoint is of step 2"),
        (lambda path: path.write_bytes(b""), "is empty, but the checkpoint is of step 2"),
        (lambda path: path.write_bytes(b"x" * 9999), "is damaged (file is not a database)"),
        (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "is damaged ("),
        (foreign, "not a rollout journal"),
        (of_another_run, "does not know step 2, from which the run continues (it ends at 0)"),
        (log_alone, "is missing, but its write-ahead log journal.sqlite-wal is there"),
    ],
)
def test_another_journal_is_refused_untouched_and_kept_if_a_new_one_is_asked_for(
    journal: Path, damage, said: str
) -> None:
    damage(journal)
    before = contents(journal.parent)
    with pytest.raises(UnusableJournal) as raised:
        check_journal(journal, STEP)
    assert said in str(raised.value) and str(journal) in str(raised.value) and "\n" not in str(raised.value)
    assert "rollout.new_journal=true" in str(raised.value) and contents(journal.parent) == before

    began = take_up(journal, STEP, first=8, new=True)
    assert began.next_id("training") == 8 and began.open_groups() == []
    began.close()
    before.pop("journal.sqlite.lock", None)
    kept = {name: data for name, data in contents(journal.parent).items() if ".lost" in name}
    assert kept == {name.replace(".sqlite", ".sqlite.lost", 1): data for name, data in before.items()}
    check_journal(journal, STEP)  # from now on it is the run's own
    again = take_up(journal, STEP, first=8)
    assert again.next_id("training") == 8
    again.close()


def test_a_journal_that_can_be_used_is_used_though_a_new_one_is_allowed(journal: Path) -> None:
    with closing(take_up(journal, STEP, new=True)) as taken:
        assert [found.id for found in taken.open_groups()] == [2, 3]
    assert not list(journal.parent.glob("*.lost*"))


def test_a_journal_that_was_not_closed_is_checked_when_it_is_opened(tmp_path: Path) -> None:
    running = fill(tmp_path / "running")
    for suffix in ("", "-wal"):
        shutil.copy(tmp_path / f"running{suffix}", tmp_path / f"killed{suffix}")
    expected = content(running)
    running.close()
    with closing(take_up(tmp_path / "killed", STEP)) as taken:
        assert content(taken) == expected
    check_journal(tmp_path / "killed", STEP)
    with pytest.raises(UnusableJournal, match="does not know step 3"):
        take_up(tmp_path / "killed", 3)


def flips(data: bytes, seed: int) -> bytes:
    choice, changed = random.Random(seed), bytearray(data)
    size = choice.choice((1, 1, 8, 64))
    begin = choice.randrange(len(data) - size)
    for place in range(begin, begin + size):
        changed[place] ^= choice.randint(1, 255)
    return bytes(changed)


def check_flips(whole: Path, journal: Path, seeds: range) -> int:
    """The number of flips that were seen; what was taken up with the others is exactly what was written."""
    with closing(Journal(Path(shutil.copy(whole, journal.with_name("expected"))))) as opened:
        expected, seen, data = content(opened), 0, whole.read_bytes()
    for seed in seeds:
        journal.write_bytes(flips(data, seed))
        try:
            with closing(take_up(journal, STEP)) as taken:
                assert content(taken) == expected, seed
        except DataError as error:
            assert str(journal) in str(error) and "\n" not in str(error), seed
            seen += 1
        for left in journal.parent.glob("journal.sqlite*"):
            left.unlink()
    return seen


def test_flips_are_named_or_change_nothing_that_a_run_takes_up(whole: Path, journal: Path) -> None:
    assert check_flips(whole, journal, range(120)) > 12


@pytest.mark.long
def test_campaign_of_flips(whole: Path, journal: Path) -> None:
    assert check_flips(whole, journal, range(1000, 6000)) > 500


def test_a_damaged_row_is_one_line_for_readers(journal: Path) -> None:
    with closing(sqlite3.connect(journal)) as db:
        db.execute("UPDATE deltas SET tokens = x'0102' WHERE group_id = 0")
        db.commit()
    with JournalReader(journal) as reader, pytest.raises(DataError, match="the journal is damaged: group 0 is not"):
        list(reader.groups())


@pytest.mark.parametrize(
    ("damage", "read"),
    [
        ("ALTER TABLE checkpoints RENAME COLUMN step TO stop", lambda reader: reader.checkpoints()),
        ("DROP TABLE consumed", lambda reader: reader.consumed()),
        ("ALTER TABLE finished RENAME COLUMN reason TO season", lambda reader: list(reader.groups())),
        ("ALTER TABLE finished RENAME COLUMN reason TO season", lambda reader: list(reader.lengths())),
        ("UPDATE finished SET rollout = 9 WHERE group_id = 0 AND rollout = 1", lambda reader: list(reader.groups())),
        ("DELETE FROM finished WHERE group_id = 0", lambda reader: list(reader.texts([0]))),
        ("UPDATE trained SET micro_batches = '[[['", lambda reader: reader.trained_order(1)),
        ("UPDATE trained SET micro_batches = 3", lambda reader: reader.trained_order(1)),
    ],
)
def test_a_damaged_table_is_one_line_for_readers(journal: Path, damage: str, read) -> None:
    with closing(sqlite3.connect(journal)) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(trained)")]
        db.execute(damage.replace("micro_batches", columns[1]))
        db.commit()
    with JournalReader(journal) as reader, pytest.raises(DataError, match="the journal is damaged: "):
        read(reader)


def test_a_changed_token_of_a_group_that_waits_is_seen(journal: Path) -> None:
    with closing(sqlite3.connect(journal)) as db:
        db.execute("UPDATE deltas SET tokens = x'0300000002000000' WHERE group_id = 2 AND rollout = 0")
        db.commit()
    with pytest.raises(UnusableJournal, match=r"table deltas, group_id 2: not as it was written"):
        check_journal(journal, STEP)
