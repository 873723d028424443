"""Human choices become groups of two rollouts that components score as in training, and the vote stays hidden."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.evaluation.human_pairs import TAGGED, UNLIKE, UNTAGGED, read_human_pairs
from megatron_lwz.types import LengthRange
from tests.support import planted_choices as planted
from tests.support.files import write_jsonl


def read(tmp_path, *rows, **options):
    return read_human_pairs([write_jsonl(tmp_path / "votes.jsonl", rows)], **options)


def answers(pair):
    said = [parse_rollout(pair.prompt, rollout).answer for rollout in pair.rollouts]
    return said[pair.better], said[1 - pair.better]


@pytest.mark.parametrize(
    ("chosen", "rejected", "template", "forms"),
    [
        ("Good.", "Bad.", "direct", {UNTAGGED: 2}),
        ("<answer>Good.</answer>", "Bad.", "direct", {TAGGED: 1, UNTAGGED: 1}),
        ("<think>t</think> <answer>Good.</answer>", "<think>u</think>Bad.", "think", {TAGGED: 2}),
        ("<think>t</think> <answer>Good.</answer>", "Bad.", "direct", {TAGGED: 1, UNTAGGED: 1, UNLIKE: 1}),
    ],
)
def test_a_text_without_tags_is_the_answer(tmp_path, chosen, rejected, template, forms):
    found = read(tmp_path, {"prompt": "p", "chosen": chosen, "rejected": rejected})
    (pair,) = found.pairs
    assert answers(pair) == ("Good.", "Bad.") and pair.prompt.template == template and found.forms == forms
    assert all(parse_rollout(pair.prompt, rollout).valid for rollout in pair.rollouts)
    assert (pair.lengths, pair.prompt.text) == ((1, 1), "p")


def test_what_would_be_lost_is_left_out_and_counted(tmp_path):
    rows = [
        {"prompt": "p", "chosen": "It ends with </answer> here.", "rejected": "Bad."},
        {"prompt": "Explain </answer>.", "chosen": "It is `</answer>`.", "rejected": "Bad."},
        {"chosen": "Good.", "rejected": "Bad."},
        {"prompt": "p", "response_a": "a", "response_b": "b", "winner": "tie"},
        {"prompt": "p", "chosen": "Good.", "rejected": "Bad."},
    ]
    found = read(tmp_path, *rows)
    assert len(found.pairs) == 1
    assert found.left_out == {"with think or answer tags inside a reply": 2, "without a request": 1, "tied": 1}


def test_the_order_of_the_two_says_nothing_about_the_vote(tmp_path):
    rows = planted.rows(200)
    pairs = read(tmp_path, *rows).pairs
    assert 70 < sum(pair.better for pair in pairs) < 130
    turned = read(tmp_path, *({**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows)).pairs
    assert [pair.rollouts for pair in turned] == [pair.rollouts for pair in pairs]
    assert [pair.better for pair in turned] == [1 - pair.better for pair in pairs]
    assert [pair.key for pair in turned] == [pair.key for pair in pairs], "a component sees no vote"


def test_components_read_a_row_as_in_training_without_the_vote(tmp_path):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_upvotes": 9, "margin": 2, "reference": "r", "Hint": 1}
    (pair,) = read(tmp_path, row | {"length": {"lower": 1, "upper": 2}, "language": "zh"}).pairs
    assert (pair.prompt.length, pair.prompt.language) == (LengthRange(1, 2), "zh")
    assert pair.prompt.extra == {"reference": "r", "hint": 1}
    told = ("individual_preference", "preference_elaboration", "better-rating", "all_votes", "quality_score", "Ranking")
    (pair,) = read(tmp_path, row | dict.fromkeys(told, 1)).pairs
    assert pair.prompt.extra == {"reference": "r", "hint": 1}, "HelpSteer's columns, and others that tell the vote"
    (pair,) = read(tmp_path, row | {"length": 300}).pairs
    assert pair.prompt.length is None, "a length that asks for nothing"


def test_categories_are_found_in_the_usual_columns_and_in_named_ones(tmp_path):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "Tag": "Poetry", "categories": ["x", "y", 3], "mood": "sad"}
    row["category_tag"] = {"writing_v1": {"creative_writing": True}, "if_v1": {"if": False, "score": 4}}
    (pair,) = read(tmp_path, row, columns=("mood",)).pairs
    assert pair.categories == {
        "tag": ("Poetry",), "categories": ("x", "y"), "mood": ("sad",), "category_tag": ("creative_writing",),
        "language": ("en",), "source": ("votes",),
    }  # fmt: skip


def test_narrow_and_clear_preferences_are_told_apart(tmp_path):
    rows = [
        {"prompt": "p", "chosen": f"a{n}", "rejected": "b", "score_chosen": n, "score_rejected": 0} for n in (1, 2, 3)
    ]
    found = read(tmp_path, *rows, {"prompt": "p", "chosen": "a", "rejected": "b"}).pairs
    clear, narrow = ("clear: 2 and more",), ("narrow: below 2",)
    assert [pair.categories.get("margin") for pair in found] == [narrow, clear, clear, None]
    skewed = read(tmp_path, *rows[:1], *rows[:1], *rows[:1], rows[2]).pairs
    assert [pair.categories["margin"][0][:5] for pair in skewed] == ["narro"] * 3 + ["clear"]
    assert not any("margin" in pair.categories for pair in read(tmp_path, rows[0], rows[0]).pairs)


def test_published_shapes_are_read_as_they_are(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    when = datetime(2020, 1, 2, 3, 4, 5)
    stories = [
        {"prompt": f"[ WP ] Tale {n}", "chosen_story": f"good {n}", "rejected_story": f"bad {n}", "chosen_timestamp": when,
         "rejected_timestamp": when, "chosen_upvotes": 50, "rejected_upvotes": 7}
        for n in range(3)
    ]  # fmt: skip
    parquet.write_table(arrow.Table.from_pylist(stories), tmp_path / "train-0.parquet")
    bench = [
        {"prompt": "写一首诗", "prompt_id": "a", "tag": "诗歌",
         "chosen": {"response": "好诗", "score": 3, "model": "m", "completion_tokens": 5, "prompt_tokens": 2, "word_len": 2},
         "rejected": {"response": "坏诗", "score": 1, "model": "n", "completion_tokens": 5, "prompt_tokens": 2, "word_len": 2}}
    ]  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps(bench, ensure_ascii=False), encoding="utf-8")
    talk = [{"role": "user", "content": [{"type": "text", "text": "Write.", "image": None}]}]
    votes = [
        {"id": "1", "model_a": "x", "model_b": "y", "winner": winner, "language": "en", "is_code": False,
         "conversation_a": [*talk, {"role": "assistant", "content": [{"type": "text", "text": "one", "image": None}]}],
         "conversation_b": [*talk, {"role": "assistant", "content": [{"type": "text", "text": "two", "image": None}]}]}
        for winner in ("model_b", "tie", "both_bad")
    ]  # fmt: skip
    write_jsonl(tmp_path / "votes.jsonl", votes)
    found = read_human_pairs([tmp_path / name for name in ("train-0.parquet", "bench.json", "votes.jsonl")])
    assert [answers(pair) for pair in found.pairs[:1] + found.pairs[3:]] == [
        ("good 0", "bad 0"),
        ("好诗", "坏诗"),
        ("two", "one"),
    ]
    assert found.left_out == {"tied": 2} and found.pairs[3].categories["tag"] == ("诗歌",)
