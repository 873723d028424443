"""Pairs without labels: what each corruption does, that lengths match, that nothing leaks between the sides."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from megatron_lwz.data.preferences.corruptions import CORRUPTIONS, deny
from megatron_lwz.data.preferences.documents import Document, Pool, read_documents
from megatron_lwz.data.preferences.make import (
    MakeRules,
    describe,
    document_keys,
    leaks,
    make_pairs,
    split_documents,
    without_shared,
)
from megatron_lwz.data.preferences.pieces import size, split_pieces
from megatron_lwz.errors import DataError
from tools.make_tiny_data import good_texts

ENGLISH = Document(
    "e",
    "Write about the lighthouse.",
    "First, the lighthouse stands on a rock.\nSecond, its lamp was lit every night.\nThird, sailors loved the lighthouse.\n"
    "Fourth, the keeper wrote letters by day.",
    "s",
)
CHINESE = Document(
    "c",
    "请写灯塔。",
    "第一，灯塔立在礁石上很久了。\n第二，守塔人每晚点灯。\n第三，水手们是爱灯塔的。\n第四，海风吹过长夜。",
    "s",
)
OTHERS = [
    Document(
        "f", "Write about the orchard.", "First, apples grow in rows here.\nSecond, bees fly about all the day.", "s"
    ),
    Document("g", "请写果园。", "第一，苹果树一行行地立着。\n第二，蜜蜂在枝头飞来飞去。", "s"),
]
POOL = Pool([ENGLISH, CHINESE, *OTHERS])
KINDS = list(CORRUPTIONS)


def spoil(kind: str, document: Document, tolerance: float | None = None, seed: int = 0) -> tuple[str, str]:
    for attempt in range(50):
        found = CORRUPTIONS[kind](document, POOL, random.Random(f"{seed}/{attempt}"), tolerance)
        if found is not None:
            return found
    raise AssertionError(f"{kind} never worked")


@pytest.mark.parametrize("document", [ENGLISH, CHINESE], ids=["en", "zh"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_spoils_both_languages_and_leaves_a_good_text(kind: str, document: Document) -> None:
    chosen, rejected = spoil(kind, document)
    assert chosen == document.reply and rejected.strip() and rejected != chosen


@pytest.mark.parametrize("document", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_shuffled_is_the_same_pieces_in_another_order(document: Document) -> None:
    chosen, rejected = spoil("shuffled", document)
    assert sorted(chosen.split("\n")) == sorted(rejected.split("\n"))


def test_repeated_copies_earlier_pieces_under_the_later_leads() -> None:
    for seed in range(20):
        _, rejected = spoil("repeated", ENGLISH, 1.0, seed)
        items = rejected.split("\n")
        assert [item.split(",")[0] for item in items] == ["First", "Second", "Third", "Fourth"]
        assert Counter(item.split(", ", 1)[1] for item in items).most_common(1)[0][1] > 1


@pytest.mark.parametrize("document", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_truncated_ends_within_a_sentence_and_the_good_text_with_one(document: Document) -> None:
    for seed in range(20):
        chosen, rejected = spoil("truncated", document, 0.3, seed)
        assert document.reply.startswith(chosen) and document.reply.startswith(rejected)
        assert chosen[-1] in ".。" and rejected[-1] not in ".。"
        assert abs(size(chosen) - size(rejected)) <= 0.3 * size(chosen)


def test_off_topic_takes_text_that_does_not_name_the_subject() -> None:
    assert POOL.subjects(ENGLISH) == ["lighthouse"] and POOL.subjects(CHINESE) == ["灯塔"]
    _, rejected = spoil("off_topic", ENGLISH)
    assert "orchard" in rejected or "apples" in rejected or "bees" in rejected


@pytest.mark.parametrize(("document", "subject"), [(ENGLISH, "lighthouse"), (CHINESE, "灯塔")], ids=["en", "zh"])
def test_a_dropped_requirement_is_never_named(document: Document, subject: str) -> None:
    for seed in range(10):
        chosen, rejected = spoil("requirement", document, 0.5, seed)
        assert subject in chosen and subject not in rejected.lower()


@pytest.mark.parametrize(
    ("text", "language", "denied"),
    [
        ("the lamp was lit.", "en", "the lamp was not lit."),
        ("the lamp was not lit.", "en", "the lamp was lit."),
        ("He sleeps.", "en", "it is not true that he sleeps."),
        ("他是水手。", "zh", "他不是水手。"),
        ("他没有船。", "zh", "他有船。"),
        ("他睡了。", "zh", "并非他睡了。"),
    ],
)
def test_denials(text: str, language: str, denied: str) -> None:
    assert deny(text, language) == denied


def test_one_paragraph_is_split_into_sentences() -> None:
    assert split_pieces("One here. Two there! Three?").items == ("One here.", "Two there!", "Three?")
    assert split_pieces("一在这里。二在那里！三呢？").text == "一在这里。二在那里！三呢？"


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return [Document(row["id"], row["prompt"], row["response"], "good") for row in good_texts(240, seed=5)]


def test_lengths_match_and_tell_nothing(documents: list[Document]) -> None:
    pairs, _ = make_pairs(documents, MakeRules(tolerance=0.1))
    assert all(abs(size(p.chosen) - size(p.rejected)) <= 0.1 * size(p.chosen) for p in pairs)
    report = describe(pairs)
    assert set(report["kinds"]) == set(KINDS) and set(report["languages"]) == {"en", "zh"}
    assert max(report["kinds"].values()) <= 1.5 * min(report["kinds"].values()), "all kinds are made equally often"
    assert report["length_only_accuracy"] < 0.55


def test_without_matching_the_report_says_that_length_tells(documents: list[Document]) -> None:
    pairs, _ = make_pairs(documents, MakeRules(tolerance=None, kinds=("truncated",), per_document=1))
    assert describe(pairs)["length_only_accuracy"] > 0.95


def test_the_sides_share_no_document_request_or_text(documents: list[Document]) -> None:
    sides = split_documents(documents, document_keys, held_out=0.3, seed=1)
    assert 0.15 < len(sides[1]) / len(documents) < 0.45
    train, held_out = (make_pairs(side, MakeRules())[0] for side in sides)
    assert not {p.document for p in train} & {p.document for p in held_out}
    kept = without_shared(train, held_out)
    assert leaks(train, kept) == {"prompts": 0, "texts": 0} and len(kept) > 0.9 * len(held_out)


def test_documents_that_share_a_request_or_a_text_stay_together() -> None:
    chain = [Document(str(n), f"request {n // 2}", f"text {(n + 1) // 2}", "s") for n in range(40)]
    for seed in range(5):
        first, second = split_documents(chain, document_keys, held_out=0.5, seed=seed)
        assert not first or not second, "each is joined to the next one"


def test_the_same_arguments_make_the_same_pairs_in_any_order(documents: list[Document]) -> None:
    first = split_documents(documents, document_keys, held_out=0.3, seed=1)[1]
    second = split_documents(documents[::-1], document_keys, held_out=0.3, seed=1)[1]
    assert {d.id for d in first} == {d.id for d in second}
    assert make_pairs(documents, MakeRules())[0] == make_pairs(documents, MakeRules())[0]


def test_documents_keep_their_system_text_and_rows_without_a_whole_reply_have_a_reason(tmp_path: Path) -> None:
    rows = [
        {"system": "Be brief.", "prompt": "Q", "response": "<think>T</think> One.<|im_end|>", "id": 7},
        {"prompt": "Q", "response": "<think>p and on"},
        {"prompt": "Q", "response": " "},
        {"prompt": "Q2", "response": "A2", "history": [["Q", "A"]]},
        {"messages": [{"role": role, "content": role} for role in ("user", "assistant", "user")]},
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_documents(tmp_path / "d.jsonl")) == [
        Document("7", "Be brief.\n\nQ", "One.", "d"),
        "with thinking that is cut off",
        "with an empty reply",
        "with several replies",
        "with a last question that has no reply",
    ]


@pytest.mark.parametrize(
    ("prompt", "reply", "found"),
    [
        ("Q", "<think>a</think><answer>A.</answer> PLANT", "in another form than"),
        ("Q", "PLANT <answer>A.</answer>", "in another form than"),
        ("Q", "<think>a</think><answer>A.", "with an answer that is cut off"),
        ("Q", "<answer>A.", "with an answer that is cut off"),
        ("Q", "A.<|endoftext|>B.", "with an end-of-text token inside a reply"),
        ("Q", "<thinking>a</thinking>A.", "with thinking in other tags than <think>"),
        (" ", "A.", "with an empty question"),
        ("Q", "It ends at </answer>.", "in another form than"),
        ("Q", "It is <think>.", "in another form than"),
        ("What is <think>?", "It is <think>.", "It is <think>."),
        ("What is <answer>?", "<think>a</think><answer>It is <answer>.</answer>", "It is <answer>."),
        ("Q", "<think>a</think> <answer>A.</answer><|im_end|>", "A."),
    ],
)
def test_documents_are_what_fine_tuning_would_train(tmp_path: Path, prompt: str, reply: str, found: str) -> None:
    row = {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]}
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    (document,) = read_documents(tmp_path / "d.jsonl")
    assert document.startswith(found) if isinstance(document, str) else document.reply == found


def test_documents_of_unknown_format_name_their_columns(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"foo": 1, "bar": 2}\n')
    with pytest.raises(DataError, match="foo, bar"):
        list(read_documents(tmp_path / "d.jsonl"))
