"""Human pairs in the usual formats, and what is said about any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_lwz.data.preferences.formats import parse_pair, read_pairs
from megatron_lwz.data.preferences.pairs import PreferencePair
from megatron_lwz.errors import DataError

USER = {"role": "user", "content": "Write a poem."}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def turns(text: str) -> list[dict[str, Any]]:
    return [USER, said(text)]


HH = "\n\nHuman: Write a poem.\n\nAssistant: {}"
TWO = {"prompt": "Write a poem.", "response_1": "good", "response_2": "bad"}
HELPSTEER3 = {"context": [USER], "response1": "bad", "response2": "good", "individual_preference": [{"score": 2}]}
ARENA = [{"role": "user", "content": [{"type": "text", "text": "Write a poem.", "image": None}]}]
ROWS: dict[str, tuple[dict[str, Any], float | None]] = {
    "texts": ({"prompt": "Write a poem.", "chosen": "good", "rejected": "bad"}, None),
    "query": ({"query": "Write a poem.", "response": "good", "rejected_response": "bad"}, None),
    "margin": ({"question": "Write a poem.", "chosen": "good", "rejected": "bad", "margin": 2}, 2.0),
    "margin as a text": ({"prompt": "Write a poem.", "chosen": "good", "rejected": "bad", "margin": "0.5"}, 0.5),
    "messages": ({"chosen": turns("good"), "rejected": turns("bad")}, None),
    "messages in all columns": ({"prompt": [USER], "chosen": turns("good"), "rejected": turns("bad")}, None),
    "messages as json": ({"chosen": json.dumps(turns("good")), "rejected": json.dumps(turns("bad"))}, None),
    "prompt as messages": ({"prompt": [USER], "chosen": turns("good")[1:], "rejected": turns("bad")[1:]}, None),
    "prompt as messages, texts": ({"prompt": [USER], "chosen": "good", "rejected": "bad"}, None),
    "request in one reply only": ({"chosen": turns("good"), "rejected": turns("bad")[1:]}, None),
    "llama factory": (
        {
            "conversations": [{"from": "human", "value": "Write a poem."}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        None,
    ),
    "ms-swift": ({"messages": turns("good"), "rejected_response": "bad"}, None),
    "openai": (
        {
            "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
            "preferred_output": turns("good")[1:],
            "non_preferred_output": turns("bad")[1:],
        },
        None,
    ),
    "ultrafeedback binarized": (
        {
            "prompt": "Write a poem.",
            "prompt_id": "x",
            "chosen": turns("good"),
            "rejected": turns("bad"),
            "messages": turns("good"),
            "score_chosen": 8.5,
            "score_rejected": "7.0",
        },
        1.5,
    ),
    "argilla": ({"chosen": turns("good"), "chosen-rating": 5, "rejected": turns("bad"), "rejected-rating": 4.5}, 0.5),
    "hh": ({"chosen": HH.format("good"), "rejected": HH.format("bad")}, None),
    "open transcript": ({"prompt": HH.format(""), "response": "good", "chosen": "good", "rejected": "bad"}, None),
    "ultrafeedback": (
        {
            "instruction": "Write a poem.",
            "completions": [
                {"response": "fair", "overall_score": 5.0, "fine-grained_score": 9.0},
                {"response": "bad", "overall_score": "2.0", "custom_system_prompt": "Be bad."},
                {"response": "unrated", "overall_score": "N/A"},
                {"response": "good", "overall_score": 8.0},
            ],
            "models": ["a", "b", "c", "d"],
        },
        6.0,
    ),
    "nectar": (
        {
            "prompt": "\n\nHuman: Write a poem.\n\nAssistant: ",
            "answers": [
                {"answer": "bad", "model": "a", "rank": 7.0},
                {"answer": "good", "model": "b", "rank": 1.0},
                {"answer": "fair", "model": "c", "rank": 2.0},
            ],
            "turns": 1,
        },
        None,
    ),
    "winner": ({"prompt": "Write a poem.", "response_a": "bad", "response_b": "good", "winner": "model_b"}, None),
    "safe rlhf": (
        {
            "prompt": "Write a poem.", "response_0": "bad", "response_1": "good",
            "better_response_id": 1, "safer_response_id": 0,
        },
        None,
    ),
    "numbered": (TWO | {"preference": 1.0}, None),
    "two columns that agree": (TWO | {"preference": 1, "winner": "response_1", "preference_strength": -2}, None),
    "a label of something else": (TWO | {"winner": "a", "label": "safe"}, None),
    "alpacafarm": (
        {"instruction": "Write a poem.", "input": "", "output_1": "bad", "output_2": "good", "preference": 2},
        None,
    ),
    "helpsteer2": (TWO | {"preference_strength": -2, "preference_statement": "@Response 1 is better"}, 2.0),
    "helpsteer3": (HELPSTEER3 | {"overall_preference": 3}, 3.0),
    "shp": (
        {"history": "Write a poem.", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0, "score_A": 9, "score_B": 3},
        None,
    ),
    "shp, the first": ({"history": "Write a poem.", "human_ref_A": "good", "human_ref_B": "bad", "labels": 1}, None),
    "scores of two": (
        {"prompt": "Write a poem.", "answer_0": "bad", "score_0": -0.5, "answer_1": "good", "score_1": 0.5},
        1.0,
    ),
    "arena": ({"conversation_a": turns("good"), "conversation_b": turns("bad"), "winner": "model_a"}, None),
    "arena with parts": (
        {
            "conversation_a": [*ARENA, {"role": "assistant", "content": [{"type": "text", "text": "good"}]}],
            "conversation_b": [*ARENA, {"role": "assistant", "content": "bad"}],
            "winner": "model_a",
        },
        None,
    ),
    "litbench": ({"prompt": "Write a poem.", "chosen_story": "good", "rejected_story": "bad", "chosen_upvotes": 40,
                  "rejected_upvotes": 12}, None),
    "writing preference bench": (
        {"prompt": "Write a poem.", "prompt_id": "7", "tag": "Poetry",
         "chosen": {"response": "good", "score": 3, "model": "m", "word_len": 1, "prompt_tokens": 2},
         "rejected": {"response": "bad", "score": 1, "model": "n", "word_len": 1, "prompt_tokens": 2}},
        2.0,
    ),
    "votes on rounds": ({"prompt": '["Write a poem."]', "response_a": '["bad"]', "response_b": '["good"]',
                         "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}, None),
    "ends of texts": ({"prompt": "Write a poem.", "chosen": "good<|im_end|>\n", "rejected": "bad <|endoftext|>"}, None),
}  # fmt: skip


@pytest.mark.parametrize(("row", "margin"), ROWS.values(), ids=ROWS)
def test_every_format_gives_the_same_pair(row: dict[str, Any], margin: float | None) -> None:
    pair = parse_pair(row, "x:1", source="x")
    assert isinstance(pair, PreferencePair), pair
    assert (pair.prompt, pair.chosen, pair.rejected, pair.margin) == ("Write a poem.", "good", "bad", margin)
    assert (pair.kind, pair.source, pair.language) == ("human", "x", "en")


EARLIER = [USER, {"role": "assistant", "content": "Of what?"}, {"role": "user", "content": "Rain."}]
LATER = "user: Write a poem.\n\nassistant: Of what?\n\nuser: Rain."
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Sum up.", "input": "A text.", "chosen": "a", "rejected": "b"}, "Sum up.\n\nA text."),
        ({"system": "Be brief.", "question": "Q", "chosen": "a", "rejected": "b"}, "Be brief.\n\nQ"),
        ({"prompt": [SYSTEM, USER], "chosen": "a", "rejected": "b"}, "Be brief.\n\nWrite a poem."),
        ({"prompt": "Write a poem.", "chosen": [SYSTEM, *turns("a")], "rejected": [SYSTEM, *turns("b")]},
         "Be brief.\n\nWrite a poem."),
        ({"prompt": [SYSTEM, USER], "chosen": turns("a"), "rejected": turns("b")}, "Be brief.\n\nWrite a poem."),
        ({"prompt": EARLIER, "chosen": "a", "rejected": "b"}, LATER),
        ({"prompt": "Rain.", "chosen": [*EARLIER, said("a")], "rejected": [*EARLIER, said("b")]}, LATER),
        ({"prompt": [USER], "chosen": [*EARLIER[1:], said("a")], "rejected": [*EARLIER[1:], said("b")]}, LATER),
        ({"prompt": "Rain.", "history": [["Write a poem.", "Of what?"]], "chosen": "a", "rejected": "b"}, LATER),
        ({"chosen": "\n\nHuman: Write a poem.\n\nAssistant: Of what?\n\nHuman: Rain.\n\nAssistant: a",
          "rejected": "\n\nHuman: Write a poem.\n\nAssistant: Of what?\n\nHuman: Rain.\n\nAssistant: b"}, LATER),
        (HELPSTEER3 | {"context": [SYSTEM, *EARLIER], "overall_preference": -1}, f"Be brief.\n\n{LATER}"),
        ({"chosen": "a", "rejected": "b"}, ""),
    ],
)  # fmt: skip
def test_everything_before_the_replies_is_kept(row: dict[str, Any], prompt: str) -> None:
    pair = parse_pair(row, "x:1")
    assert isinstance(pair, PreferencePair) and pair.prompt == prompt


def test_thinking_beside_a_reply_is_kept() -> None:
    row = {"prompt": "Q", "chosen": [said("a") | {"reasoning_content": "R"}], "rejected": "b"}
    pair = parse_pair(row, "x:1")
    assert isinstance(pair, PreferencePair) and pair.chosen == "<think>R</think> a"


def test_a_text_is_a_transcript_only_without_a_request_beside_it() -> None:
    dialogue = "He wrote:\n\nHuman: hello\n\nAssistant: good"
    for row in ({"prompt": "Q", "chosen": dialogue, "rejected": HH.format("b")}, {"chosen": dialogue, "rejected": "b"}):
        pair = parse_pair(row, "x:1")
        assert isinstance(pair, PreferencePair)
        assert (pair.prompt, pair.chosen, pair.rejected) == (row.get("prompt", ""), dialogue, row["rejected"])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "chosen": "same", "rejected": "same<|im_end|>"}, "with equal replies"),
        ({"prompt": "p", "chosen": "good", "rejected": "  "}, "with an empty reply"),
        ({"prompt": "p", "chosen": "<|endoftext|>", "rejected": "b"}, "with an empty reply"),
        ({"prompt": "p", "chosen": "<think>p and on", "rejected": "b"}, "with thinking that is cut off"),
        ({"prompt": "p", "chosen": "a", "rejected": "<think>T</think>"}, "with an empty reply"),
        ({"prompt": "p", "chosen": "A<|endoftext|>B", "rejected": "b"}, "with an end-of-text token inside a reply"),
        ({"prompt": "p", "chosen": "a", "rejected": "A<|im_end|>\nB"}, "with an end-of-text token inside a reply"),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "with an empty reply"),
        ({"prompt": "p", "chosen": "a", "rejected": "<answer>b</answer> and more"}, "with text outside the answer tags"),
        ({"prompt": "p", "chosen": "So: <answer>a</answer>", "rejected": "b"}, "with text outside the answer tags"),
        ({"prompt": "p", "chosen": "<think>t</think> So: <answer>a</answer>", "rejected": "b"},
         "with text outside the answer tags"),
        ({"prompt": "p", "response_a": "a", "response_b": "b", "winner": "tie (bothbad)"}, "tied"),
        ({"prompt": "p", "response_a": "a", "response_b": "b", "winner": "both_bad"}, "tied"),
        ({"prompt": ["p"], "response_a": ["a"], "response_b": ["b"], "winner_model_a": 0, "winner_model_b": 0,
          "winner_tie": 1}, "tied"),
        ({"prompt": ["p"], "response_a": [None], "response_b": ["b"], "winner_model_a": 0, "winner_model_b": 1,
          "winner_tie": 0}, "with an empty reply"),
        (HELPSTEER3 | {"overall_preference": 0}, "tied"),
        ({"prompt": "p", "answer_0": "a", "answer_1": "b", "score_0": 1, "score_1": 1.0}, "tied"),
        ({"instruction": "p", "completions": [{"response": "a", "score": 1}, {"response": "b", "score": 1}]}, "tied"),
        ({"prompt": "p", "completions": [{"response": "a", "score": 1}]}, "with fewer than two scored replies"),
        ({"conversation_a": [*EARLIER[:1], said("x"), USER, said("a")],
          "conversation_b": [*EARLIER[:1], said("y"), USER, said("b")], "winner": "model_a"},
         "with different earlier replies"),
        ({"chosen": HH.format("a"), "rejected": HH.format("b").replace("poem", "song")},
         "with transcripts of different requests"),
        ({"chosen": HH.format("a"), "rejected": HH.format("b\n\nHuman: More.\n\nAssistant: c")},
         "with transcripts of different requests"),
        ({"chosen": HH.format(""), "rejected": HH.format("b")}, "with an empty reply"),
        ({"chosen": HH.format("a\n\nHuman: More."), "rejected": HH.format("a\n\nHuman: More.\n\nAssistant: b")},
         "with an empty reply"),
    ],
)  # fmt: skip
def test_rows_that_prefer_nothing_are_left_out_with_a_reason(row: dict[str, Any], reason: str) -> None:
    assert parse_pair(row, "x:1") == reason


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a", "label_x": 1}, "present are: text, label_x"),
        ({"prompt": "p", "completion": "a", "label": True}, "present are: prompt, completion, label"),
        ({"response_a": "a", "response_b": "b"}, "no column says which is better"),
        ({"response_a": "a", "response_b": "b", "winner_model_a": 1, "winner_model_b": 1}, "exactly one of winner_model_a"),
        ({"response_a": "a", "response_b": "b", "winner": "me"}, "'winner' = 'me' names neither"),
        ({"response_a": "a", "response_b": "b", "winner": "a", "preference": "b"},
         "'winner' and 'preference' contradict each other: keep one"),
        ({"response_a": "a", "response_b": "b", "winner": "tie", "label": 1}, "'winner' and 'label' contradict each other"),
        (TWO | {"preference": 1, "preference_strength": 2}, "'preference' and 'preference_strength' contradict"),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "'rejected' is null: a pair needs two replies"),
        ({"prompt": "p", "response_a": None, "response_b": "b", "winner": "b"}, "'response_a' is null"),
        ({"chosen": "a", "rejected": ["b"]}, "turn 1 of 'rejected' must be an object"),
        ({"chosen": "a", "rejected": 3}, "'rejected' must be a text or a list of turns"),
        ({"chosen": [USER], "rejected": [USER]}, "'chosen' must end with the assistant's reply"),
        ({"chosen": turns("a"), "rejected": [USER | {"content": "other"}, said("b")]}, "answer different requests"),
        (PAIR | {"chosen": turns("a"), "rejected": turns("b"), "prompt": "Sing."}, "the one inside it are different"),
        (PAIR | {"messages": [USER, said("c")]}, "must end with the user's request, or with the better reply"),
        (PAIR | {"question": "q"}, "the column 'question' has a text that would be lost"),
        (PAIR | {"prompt": 5}, "'prompt' must be a text or a list of turns"),
        (PAIR | {"prompt": [USER | {"content": [{"type": "image_url"}]}]}, "a part that is no text (image_url)"),
        (PAIR | {"images": ["a.png"]}, "the row has 'images', which cannot be read"),
        (PAIR | {"margin": float("nan")}, "'margin' must be a finite number in fp32, got nan"),
        (PAIR | {"margin": 1e39}, "'margin' must be a finite number in fp32, got 1e+39"),
        (PAIR | {"margin": 10**400}, "'margin' must be a finite number in fp32"),
        (PAIR | {"margin": "large"}, "'margin' must be a number, got 'large'"),
        (PAIR | {"score_chosen": float("inf"), "score_rejected": 1}, "'score_chosen' must be a finite number"),
        (PAIR | {"score_chosen": 3e38, "score_rejected": -3e38}, "'score_chosen − score_rejected' must be a finite"),
        (HELPSTEER3 | {"overall_preference": float("nan")}, "'overall_preference' must be a finite number"),
        (HELPSTEER3 | {"overall_preference": "better"}, "'overall_preference' must be a number"),
        ({"instruction": "p", "completions": [{"response": "a"}]}, "no object in 'completions' has a response and one of"),
        ({"instruction": "p", "completions": [{"response": "a", "score": "NaN"}]}, "'completions[0].score' must be a finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_with_its_place(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(PAIR) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        list(read_pairs(path))
    assert words in str(caught.value) and "line 2" in str(caught.value) and "\n" not in str(caught.value)


def test_parquet_and_own_rows_come_back_as_they_were(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    row = {"prompt": "写一首诗。", "chosen": [said("好")], "rejected": [said("坏")]}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "p.parquet")
    (pair,) = read_pairs(tmp_path / "p.parquet")
    assert isinstance(pair, PreferencePair) and (pair.prompt, pair.chosen, pair.language) == ("写一首诗。", "好", "zh")
    (tmp_path / "own.jsonl").write_text(json.dumps(pair.row()) + "\n")
    assert list(read_pairs(tmp_path / "own.jsonl")) == [pair]
