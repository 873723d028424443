import sqlite3

import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.types import Prompt
from megatron_lwz.ui.filters import Filters
from megatron_lwz.ui.index import Index
from megatron_lwz.ui.search import fts_query, searchable, snippet
from megatron_lwz.ui.signals import rank_correlation, read_signals
from tests.support.reading_run import HOSTILE, ReadingRun, response


@pytest.fixture
def index(reading_run, tmp_path):
    made = Index(reading_run / "journal.sqlite", tmp_path / "index.sqlite")
    while made.update():
        pass
    yield made
    made.close()


def found(index, flagged=(), **filters):
    source, values = Filters.read({key: str(value) for key, value in filters.items()}).query(index, flagged)
    return set(index.rows(f"SELECT r.group_id, r.rollout {source}", *values))


def test_every_finished_rollout_is_indexed_once(index):
    done, total = index.counts()
    assert done == total == 45
    assert index.update() == 0


def test_filters_select_by_state_end_form_language_step_score_and_flag(index):
    assert found(index, end="guard") == {(3, 0), (3, 1)}
    assert found(index, form="faulty") >= {(2, 1), (2, 2), (3, 1)}
    assert found(index, state="waiting") == {(15, 0), (15, 1), (15, 2)}
    assert found(index, first=1, last=1) == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)}
    assert found(index, language="chinese", prompt="novel-zh") == {(1, 0), (1, 1)}
    assert found(index, score="format", least=1.0) == found(index)
    assert found(index, score="format", most=0.5) == set()
    assert found(index, flagged={(0, 1)}, flag=1) == {(0, 1)}
    assert found(index, flag=1) == found(index, state="excluded") == found(index, kind="evaluation") == set()


def test_search_finds_words_phrases_and_single_chinese_characters(index):
    assert (0, 0) in found(index, q="chapter") and (1, 0) not in found(index, q="chapter")
    assert found(index, q='"plan the chapters first"') >= {(0, 0), (3, 0)}
    assert (1, 0) in found(index, q="提纲") and (0, 0) not in found(index, q="提纲")
    assert {(1, 0), (1, 1)} <= found(index, q="小镇")
    assert found(index, q="镇小") == set()
    assert {(2, 0), (2, 1), (2, 2)} <= found(index, q="javascript:alert")
    for strange in ('"', "NOT", "a AND", "text:*", "((", "'; DROP TABLE rollouts; --", "-", "*", HOSTILE):
        found(index, q=strange)


def test_filters_survive_any_address():
    strange = {"kind": "x", "first": "1e9", "least": "nan", "at": "-5", "sort": "'; --", "end": "zzz", "last": "9" * 40}
    read = Filters.read(strange)
    assert read == Filters()
    assert (
        Filters.read({"q": "河 a&b", "first": "3", "sort": "tokens"}).address(at=60)
        == "q=%E6%B2%B3+a%26b&first=3&sort=tokens&at=60"
    )


def test_an_index_follows_a_run_that_goes_on(tmp_path):
    run = ReadingRun(tmp_path / "run")
    run.add_group(Prompt("a", "One?"), [response("first text")], step=1)
    index = Index(tmp_path / "run" / "journal.sqlite", tmp_path / "index.sqlite")
    assert index.update() == 1 and index.update() == 0
    run.add_group(Prompt("b", "Two?"), [response("second text"), response("second text again")], step=2, consume=False)
    assert index.update() == 2
    assert found(index, q="second") == {(1, 0), (1, 1)} == found(index, state="waiting")
    run.journal.consume([1], 2)
    run.journal.commit()
    assert found(index, state="waiting") == set()
    run.close()
    index.close()


def test_a_file_that_is_no_journal_is_one_line(tmp_path):
    path = tmp_path / "journal.sqlite"
    sqlite3.connect(path).execute("CREATE TABLE other (a)")
    with pytest.raises(DataError, match="not a rollout journal"):
        Index(path, tmp_path / "index.sqlite")


def test_queries_and_snippets():
    assert searchable("河a流\0") == " 河 a 流  "
    assert fts_query('river "old town" 河流') == '"river"* AND "old town"* AND "河 流"'
    assert fts_query('- * ""') == ""
    assert snippet("x" * 200 + " The RIVER bends", "river") == ("…" + "x" * 55 + " The ", "RIVER", " bends")
    assert snippet("nothing", "river") is None


def test_signals_compare_first_and_last_groups(index):
    signals = read_signals(index)
    assert signals.groups > 1 and signals.steps[1] >= signals.steps[0]
    assert all(0 <= value <= 1 for value in (*signals.repetition, *signals.likeness))
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_correlation([1, 1], [1, 2]) is None
    assert rank_correlation([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(0.9486832980505138)
