"""Files that grow, cut at every byte as a kill or a full disk may leave them: what was complete before the cut is kept."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from megatron_lwz.evaluation.partial import Partials
from megatron_lwz.metrics import MetricsWriter, read_metrics
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.journal import Journal, take_up
from megatron_lwz.training.attempts import append_attempt
from megatron_lwz.types import Prompt, TokenDelta, WeightVersion

TOKENS = 40


def grown(path: Path, grow: Callable[[int], None], times: int) -> tuple[bytes, list[int]]:
    """The content after so many steps, and its size after each."""
    sizes = []
    for number in range(times):
        grow(number)
        sizes.append(path.stat().st_size)
    return path.read_bytes(), sizes


def whole(sizes: list[int], cut: int) -> int:
    """Lines that are complete at this size; the line end itself may be missing."""
    return sum(size - 1 <= cut for size in sizes)


def test_metrics_and_starts(tmp_path: Path) -> None:
    writer, metrics, attempts = (
        MetricsWriter(tmp_path, tensorboard=False),
        tmp_path / "metrics.jsonl",
        tmp_path / "attempts.jsonl",
    )
    content, sizes = grown(metrics, lambda number: writer.write(number + 1, {"loss": number / 3}), 3)
    for cut in range(len(content) + 1):
        metrics.write_bytes(content[:cut])
        again = MetricsWriter(tmp_path, tensorboard=False)
        kept = whole(sizes, cut)
        again.write(kept + 1, {"loss": 9.0})
        assert [row["loss"] for row in read_metrics(metrics)] == [*(n / 3 for n in range(kept)), 9.0], cut
    content, sizes = grown(attempts, lambda number: append_attempt(attempts, number, {}) and None, 2)
    for cut in range(len(content) + 1):
        attempts.write_bytes(content[:cut])
        assert append_attempt(attempts, 0, {}) == whole(sizes, cut), cut


def test_unfinished_responses_of_an_evaluation(tmp_path: Path) -> None:
    responses, file = tmp_path / "r.jsonl", tmp_path / "r.jsonl.partial.jsonl"
    held = Partials(responses, {"top": 1}, ())

    def grow(number: int) -> None:
        held.add(("task", 0), f"piece {number} é ", 2)
        held.flush()

    content, sizes = grown(file, grow, 3)
    for cut in range(len(content) + 1):
        file.write_bytes(content[:cut])
        found = Partials(responses, {"top": 1}, ()).get(("task", 0))
        assert found.tokens == 2 * sum(size <= cut for size in sizes), cut


def grow_journal(journal: Journal, number: int) -> None:
    """One commit with TOKENS tokens of each of two rollouts."""
    for index in range(2):
        tokens = tuple(range(number * TOKENS, (number + 1) * TOKENS))
        journal.extend(Draft(0, index), number * TOKENS, TokenDelta(tokens, (-0.5,) * TOKENS, WeightVersion(0)))
    journal.commit()


def tokens_in(path: Path) -> int:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:  # nothing is flushed at its end
        return int(database.execute("SELECT coalesce(sum(length(tokens) / 4), 0) FROM deltas").fetchone()[0])


def cut_at(source: Path, folder: Path, cut: int) -> Path:
    """A copy of a journal with the first `cut` bytes of its log."""
    for name in ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"):
        (folder / name).unlink(missing_ok=True)
    shutil.copyfile(source / "journal.sqlite", folder / "journal.sqlite")
    log = (source / "journal.sqlite-wal").read_bytes()
    (folder / "journal.sqlite-wal").write_bytes(log[:cut])
    return folder / "journal.sqlite"


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[int]]:
    """A folder with a journal that a kill left, and the sizes of its log after the admission and after each commit."""
    source = tmp_path / "source"
    journal = Journal(source / "journal.sqlite")
    journal.admit(GroupDraft(0, "training", Prompt("p", "prompt"), (1, 2), 1, [Draft(0, 0), Draft(0, 1)]))
    journal.commit()
    log = source / "journal.sqlite-wal"
    sizes = [log.stat().st_size]
    for number in range(3):
        grow_journal(journal, number)
        sizes.append(log.stat().st_size)
    left = tmp_path / "left"
    shutil.copytree(source, left)
    journal.close()
    return left, sizes


def check_cuts(written: tuple[Path, list[int]], folder: Path, cuts: range) -> None:
    source, sizes = written
    folder.mkdir()
    for cut in cuts:
        kept = 2 * TOKENS * sum(size <= cut for size in sizes[1:])
        assert tokens_in(cut_at(source, folder, cut)) == kept, cut


def test_the_log_of_a_journal(written: tuple[Path, list[int]], tmp_path: Path) -> None:
    _, sizes = written
    check_cuts(written, tmp_path / "cut", range(sizes[-3], sizes[-1] + 1, 61))


@pytest.mark.long
def test_the_log_of_a_journal_at_every_byte(written: tuple[Path, list[int]], tmp_path: Path) -> None:
    _, sizes = written
    check_cuts(written, tmp_path / "cut", range(sizes[0], sizes[-1] + 1))


def test_a_run_goes_on_with_a_journal_whose_log_is_cut(written: tuple[Path, list[int]], tmp_path: Path) -> None:
    source, sizes = written
    folder = tmp_path / "cut"
    folder.mkdir()
    for cut in (sizes[1] - 1, sizes[1], sizes[1] + 1, sizes[2] + 4000, sizes[3]):
        journal = take_up(cut_at(source, folder, cut), 0)
        commits = sum(size <= cut for size in sizes[1:])
        (group,) = journal.open_groups()
        assert [len(draft.tokens) for draft in group.drafts] == [commits * TOKENS] * 2, cut
        grow_journal(journal, commits)
        journal.close()
        assert tokens_in(folder / "journal.sqlite") == 2 * TOKENS * (commits + 1), cut
