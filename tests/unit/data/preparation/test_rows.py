import pytest

from megatron_lwz.data.preparation.ranges import RangeRules, TokenBudget
from megatron_lwz.data.preparation.rows import (
    RULES_VERSION,
    Filters,
    JudgedLength,
    Settings,
    Tally,
    estimate_tokens,
    find_candidates,
    settle,
)
from megatron_lwz.data.preparation.sources import NO_REQUEST, Source
from megatron_lwz.data.prompts import parse_prompt
from megatron_lwz.errors import DataError
from megatron_lwz.types import LengthRange

ESSAY = "Write a 2000-word essay on solitude."
STORY = "Write a long story about the sea and its people."
RULES_ONLY = Settings(rules_only=True)


def source(text, **more):
    return Source(text, "wild.jsonl", **more)


def run(*sources, filters=Filters(), settings=RULES_ONLY, judged=None):
    tally = Tally()
    candidates = list(find_candidates(sources, filters, tally))
    rows = [settle(one, judged, settings, tally, date="2026-01-02") for one in candidates]
    kept = [row for row in rows if row]
    assert tally["read"] == len(sources) == tally["kept"] + sum(n for k, n in tally.items() if k.startswith("dropped"))
    return kept, tally


def dropped(tally):
    return {name.removeprefix("dropped: "): count for name, count in tally.items() if name.startswith("dropped")}


def test_a_row_is_what_the_trainer_reads_and_says_where_it_comes_from():
    ((row,), _) = run(source(ESSAY, id="c1"))
    assert row.pop("id").startswith("wild-")
    assert row == {
        "prompt": ESSAY,
        "length": {"lower": 1800, "upper": 2200},
        "language": "en",
        "source": {"file": "wild.jsonl", "id": "c1"},
        "provenance": {"range": "rule", "rules": RULES_VERSION, "judge": None, "date": "2026-01-02"},
    }
    assert parse_prompt({"id": "x", **row}, maximum_length=16_000).length == LengthRange(1800, 2200)


def test_ids_depend_on_the_request_alone():
    assert run(source(ESSAY))[0][0]["id"] == run(source(STORY), source(ESSAY))[0][0]["id"]


def test_everything_dropped_has_its_reason():
    kept, tally = run(
        source(ESSAY),
        source(ESSAY.upper()),
        source(STORY),
        source("hello"),
        DataError("w.jsonl", NO_REQUEST, line=3),
        DataError("w.jsonl", "not valid JSON (Expecting value, column 7)", line=4),
        DataError("w.jsonl", "not valid JSON (Extra data, column 9)", line=5),
        DataError("w.jsonl", "turn 3 of 'chat' has a part that is no text (image_url): only text can be read", line=6),
        source("Écris une histoire de 2000 mots pour les enfants dans la forêt"),
        source("Write a 2000-word text about harm.", flagged=True),
        source("Write 2000 words on " + "one thing and another, " * 500),
        source("Write a 11000-word novel about bees."),
        source("Write a 13000-word novel about wasps."),
        source("Write an email of 100 words about ants."),
        source("Write a post of 2000 characters on flies."),
        source("写一篇关于大海的故事，要求写得很长很长。", asked=(0, 0)),
    )
    assert len(kept) == 1
    assert dropped(tally) == {
        "exact copy of an earlier request": 1,
        "no explicit length": 2,
        "request shorter than 10 characters": 1,
        "no request in the row": 1,
        "not valid JSON": 2,
        "turn … of … has a part that is no text": 1,
        "another language": 1,
        "flagged as harmful by the data set": 1,
        "request longer than about 2048 tokens": 1,
        "longer than the token budget holds beside the thinking": 1,
        "rule: longer than the largest length": 1,
        "answer shorter than 500 (--shortest-answer)": 1,
        "data set: [0, 0]: impossible or oversized": 1,
    }
    assert tally["note: a length in letters, which the reward does not count"] == 1
    assert str(tally.first_fault) == "w.jsonl, line 4: not valid JSON (Expecting value, column 7)"


def test_a_system_text_before_a_request_is_noted():
    kept, tally = run(source(ESSAY, after_system=True))
    assert len(kept) == 1 and tally["note: a system text before the request, which is not part of it"] == 1


def test_lengths_that_disagree_give_no_range_and_are_counted():
    kept, tally = run(
        source("Write at least 1000 words on bees, at most 800 words."),
        source("写一篇关于大海的作文，至少1000字，最多800字。"),
        source("Write at least 800 words on wasps, at most 1000 words."),
    )
    assert [row["length"] for row in kept] == [{"lower": 800, "upper": 1000}]
    assert dropped(tally) == {"no explicit length": 2}
    assert tally["note: lengths in the request that disagree or are unclear: no range by rule"] == 2


def test_near_copies_are_dropped_before_a_judge_sees_them():
    long = "Write a long and careful story about a lighthouse keeper who finds a letter in a bottle on the beach. " * 2
    _, tally = run(source(long), source(long + "Please."))
    assert dropped(tally)["near copy of an earlier request"] == 1


@pytest.mark.parametrize(
    ("text", "judged", "expected"),
    [
        (STORY, JudgedLength(True, 1000, 2000, "m/v1"), ("judge", 1000, 2000)),
        (STORY, JudgedLength(True, 990, 2000, "m/v1"), ("judge", 900, 2000)),
        (ESSAY, JudgedLength(True, 500, 700, "m/v1"), ("rule", 1800, 2200)),
        (ESSAY, JudgedLength(False, 1800, 2200), "the judge says it needs no long reply"),
        (STORY, JudgedLength(True, 0, 0), "judge: [0, 0]: impossible or oversized"),
        (STORY, JudgedLength(True, 3000, 1000), "judge: bounds below 0 or in the wrong order"),
        (STORY, JudgedLength(True, 15000, 16000), "judge: longer than the largest length"),
        (STORY, None, "the judge gave no verdict"),
    ],
)
def test_with_a_judge(text, judged, expected):
    kept, tally = run(source(text), settings=Settings(), judged=judged)
    if isinstance(expected, str):
        assert not kept and dropped(tally) == {expected: 1}
    else:
        (row,) = kept
        assert (row["provenance"]["range"], *row["length"].values()) == expected
        assert row["provenance"]["judge"] == "m/v1"


def test_a_range_of_the_data_set_needs_no_judge():
    (row,), tally = run(source(STORY, asked=(6000, 10000)), settings=Settings(budget=TokenBudget(20_000)))
    assert row["length"] == {"lower": 6000, "upper": 10000} and row["provenance"]["range"] == "data set"
    assert tally["note: data set range wider than 3000"] == 1


def test_words_in_a_chinese_request_are_counted_as_words():
    (_, tally) = run(source("写一篇11000个单词的英文小说，关于大海和人们的生活。"))
    assert dropped(tally) == {"longer than the token budget holds beside the thinking": 1}
    (row,), _ = run(source("写一篇11000字的中文小说，关于大海和人们的生活。"))
    assert row["length"] == {"lower": 9900, "upper": 12000}


def test_one_language_alone_and_exact_bounds():
    kept, _ = run(source(ESSAY), source("写一篇1234字的作文，关于春天。"), filters=Filters(language="zh"))
    assert [row["language"] for row in kept] == ["zh"]
    (row,), _ = run(source("Write 1234 words on bees."), settings=Settings(RangeRules(step=1), rules_only=True))
    assert row["length"] == {"lower": 1111, "upper": 1357}


def test_estimated_tokens():
    assert estimate_tokens("abcd" * 10) == 10 and estimate_tokens("中" * 10) == 8
