"""Instruction rows: every usual format, what is wrong in one line, and which tokens carry the loss."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_lwz.data.instructions import (
    Conversation,
    Rendering,
    find_fault,
    parse_conversation,
    read_conversations,
    tokenize,
)
from megatron_lwz.data.templates import render
from megatron_lwz.errors import DataError
from megatron_lwz.types import Prompt

EOS = 0
ENDS = ("<eos>", "<|im_end|>")
BARE = Rendering("bare", "all", wrap_answer=False, ends=ENDS)


def encode(text: str) -> list[int]:
    return [ord(character) for character in text.replace("<eos>", chr(EOS))]


def decode(tokens: list[int]) -> str:
    return "".join(chr(token) if token else "<eos>" for token in tokens)


def trained_text(conversation: Conversation, rendering: Rendering) -> list[str]:
    """The trained stretches, in order."""
    example = tokenize(conversation, encode, [EOS, 7], rendering)
    marked = "".join(
        chr(token or 1) if trained else "\n" for token, trained in zip(example.tokens, example.trained, strict=True)
    )
    return [part.replace(chr(1), "<eos>") for part in marked.split("\n") if part]


USER, SAID = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SAME: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER, SAID]},
    "conversation": {"conversation": [USER, SAID], "language": "English", "toxic": False},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "messages": None},
    "openhermes": {
        "conversations": [{"from": "human", "value": "Q", "weight": None}, {"from": "gpt", "value": "A", "weight": None}],
        "system_prompt": None, "title": "T", "views": 3.0, "source": "s",
    },
    "json text": {"messages": json.dumps([USER, SAID])},
    "prompt, response": {"prompt": "Q", "response": "A"},
    "prompt, completion": {"prompt": "Q", "completion": "A", "id": 7},
    "trl, conversational": {"prompt": [USER], "completion": [SAID]},
    "trl, mixed": {"prompt": [USER], "completion": "A"},
    "trl, text and turns": {"prompt": "Q", "completion": SAID, "tools": None},
    "alpaca": {"instruction": "Q", "input": "", "output": "A"},
    "alpaca, only input": {"instruction": "", "input": "Q", "output": "A", "history": []},
    "dolly": {"instruction": "Q", "context": "", "response": "A", "category": "qa"},
    "question, answer": {"question": "Q", "answer": "A"},
    "query, response": {"query": "Q", "response": "A"},
    "input, output": {"input": "Q", "output": "A"},
    "input, target": {"kind": "poem", "input": "Q", "target": "A"},
    "inputs, targets": {"inputs": "Q", "targets": "A"},
    "writing prompts": {"prompt": "Q", "story": "A"},
    "upper case": {"INSTRUCTION": "Q", "RESPONSE": "A", "SOURCE": "web"},
    "repeated columns": {"messages": [USER, SAID], "prompt": " Q", "instruction": "Q", "response": "A", "prompt_id": "x"},
    "ultrafeedback": {"prompt": "Q", "messages": [USER, SAID], "chosen": [USER, SAID], "rejected": [USER], "score_chosen": 1},
    "turns and reply": {"messages": [USER], "answer": "A", "reasoning": "off", "model": "m"},
    "transcript": {"prompt": "\n\nHuman: Q\n\nAssistant:", "response": "A"},
    "no tools": {"prompt": "Q", "response": "A", "tools": "[]", "images": [], "functions": {}},
    "other output empty": {"prompt": "Q", "response": None, "output": "A", "answer": ""},
}  # fmt: skip


@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
def test_the_usual_formats_say_the_same(row: dict[str, Any]) -> None:
    assert parse_conversation(row, "x") == Conversation("x", ("Q",), ("A",))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Do", "input": "this", "output": "A"}, Conversation("x", ("Do\n\nthis",), ("A",))),
        ({"prompt": "Do", "context": "this", "output": "A"}, Conversation("x", ("Do\n\nthis",), ("A",))),
        ({"prompt": "Do this", "input": "this", "output": "A"}, Conversation("x", ("Do this",), ("A",))),
        ({"system_prompt": "S", "question": "Q", "response": "A"}, Conversation("x", ("Q",), ("A",), "S")),
        ({"system": "S", "conversations": [USER, SAID]}, Conversation("x", ("Q",), ("A",), "S")),
        (
            {"system": "S", "messages": [{"role": "system", "content": "S "}, USER, SAID]},
            Conversation("x", ("Q",), ("A",), "S "),
        ),
        (
            {"messages": [{"role": "system", "content": "S"}, {"role": "developer", "content": "T"}, USER, SAID]},
            Conversation("x", ("Q",), ("A",), "S\n\nT"),
        ),
        (
            {"instruction": "Q2", "output": "A2", "history": [["Q", "A"]], "system": "S"},
            Conversation("x", ("Q", "Q2"), ("A", "A2"), "S"),
        ),
        (
            {"system": "S", "conversation": [{"human": "Q", "assistant": "A"}, {"human": "Q2", "assistant": "A2"}]},
            Conversation("x", ("Q", "Q2"), ("A", "A2"), "S"),
        ),
        (
            {"prompt": [USER, SAID, {"role": "user", "content": "Q2"}], "completion": [SAID]},
            Conversation("x", ("Q", "Q2"), ("A", "A")),
        ),
        (
            {"messages": [USER, SAID | {"weight": 0}, USER, SAID | {"weight": 1}, USER]},
            Conversation("x", ("Q", "Q"), ("A", "A"), trained=(False, True), unanswered=True),
        ),
        (
            {"prompt": "Q", "response": "A", "reasoning_content": "R"},
            Conversation("x", ("Q",), ("<think>R</think> A",)),
        ),
        (
            {"input": "Q", "reasoning_content": "R", "content": "A", "score": 9},
            Conversation("x", ("Q",), ("<think>R</think> A",)),
        ),
        (
            {"instruction": "Q2", "output": "A2", "history": [["Q", "A"]], "reasoning": "R"},
            Conversation("x", ("Q", "Q2"), ("A", "<think>R</think> A2")),
        ),
        ({"Question": "Q", "Response": "A", "Complex_CoT": "R"}, Conversation("x", ("Q",), ("<think>R</think> A",))),
        (
            {"messages": [{"role": "system", "content": "S"}, USER], "reasoning": "R", "answer": "A"},
            Conversation("x", ("Q",), ("<think>R</think> A",), "S"),
        ),
        ({"messages": [USER, SAID | {"reasoning": "R"}]}, Conversation("x", ("Q",), ("<think>R</think> A",))),
        (
            {"prompt": "Q", "response": "<think>R</think> A", "cot": "R"},
            Conversation("x", ("Q",), ("<think>R</think> A",)),
        ),
    ],
)
def test_system_history_material_and_thinking_are_kept(row: dict[str, Any], expected: Conversation) -> None:
    assert parse_conversation(row, "x") == expected


def test_the_system_text_stands_before_the_first_question() -> None:
    turns = [("system", "S"), ("human", "Q1"), ("gpt", "A1"), ("human", "Q2"), ("gpt", "A2"), ("human", "unanswered")]
    found = parse_conversation({"conversations": [{"from": f, "value": v} for f, v in turns]}, "x")
    assert (found.system, found.questions, found.replies) == ("S", ("Q1", "Q2"), ("A1", "A2")) and found.unanswered
    assert decode(list(tokenize(found, encode, [EOS], BARE).tokens)) == (
        "<|user|>: S\n\nQ1 <|assistant|>: A1<eos>\n<|user|>: Q2 <|assistant|>: A2<eos>"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"ask": "Q", "reply": "A"},
            "no request found: the row has the keys ask, reply; give messages or conversations, ",
        ),
        (
            {"prompt": "Q", "chosen": "A", "rejected": "B"},
            "no reply found: the row has the keys prompt, chosen, rejected",
        ),
        ({"text": "a document"}, "no request found: the row has the keys text"),
        ({"prompt": "Q", "history": [["Q1", "A1"]]}, "no reply found: the row has the keys prompt, history"),
        ({"messages": [USER]}, "no reply found: the row has the keys messages"),
        ({}, "the row has the keys (none)"),
        ([1], "a row must be a JSON object, not a list"),
        ({"messages": "Q"}, "'messages' must be a list of turns"),
        ({"messages": [USER, {"role": "tool", "content": "Q"}]}, "turn 2 of 'messages' has the role 'tool'"),
        ({"messages": [SAID]}, "must alternate user, assistant, …; they are assistant"),
        ({"messages": [USER, USER, SAID]}, "must alternate user, assistant, …; they are user, user, assistant"),
        ({"messages": [USER, {"role": "system", "content": "S"}, SAID]}, "they are user, system, assistant"),
        ({"prompt": "Q", "response": "A", "template": "x"}, "'template' must be"),
        ({"prompt": "Q", "response": "A", "system": 3}, "'system' must be a text, got 3"),
        ({"prompt": "Q", "response": 4}, "'response' must be a text or a list of turns"),
        ({"prompt": "Q", "input": ["x"], "response": "A"}, "'input' must be a text beside the request, got ['x']"),
        ({"prompt": "Q", "response": "A", "output": "B"}, "the column 'output' has a text that would be lost"),
        ({"messages": [USER, SAID], "answer": "B"}, "the column 'answer' has a text that would be lost"),
        ({"prompt": "Q", "question": "Q2", "response": "A"}, "the column 'question' has a text that would be lost"),
        ({"messages": [USER, SAID], "history": [["a", "b"]]}, "the column 'history' has a text that would be lost"),
        (
            {"messages": [USER | {"content": "other"}], "conversations": [USER, SAID]},
            "the column 'messages' has a text",
        ),
        ({"prompt": "Q", "response": "A", "history": "before"}, "'history' must be a list of [question, reply]"),
        ({"prompt": "Q", "response": "A", "history": [["a"]]}, "'history' must be a list of [question, reply]"),
        ({"prompt": "Q", "response": "A", "tools": [{"name": "f"}]}, "the row has 'tools', which cannot be read"),
        ({"prompt": "Q", "response": "A", "images": ["a.png"]}, "the row has 'images', which cannot be read"),
        (
            {"prompt": "Q", "response": "A", "Response": "B"},
            "two columns are named 'response', but for upper and lower",
        ),
        (
            {"system": "T", "messages": [{"role": "system", "content": "S"}, USER, SAID]},
            "'system' and the conversation have different system texts",
        ),
        ({"prompt": "Q", "response": "A", "reasoning": "a", "cot": "b"}, "the row has different thinking in"),
        ({"messages": [USER, SAID, USER, SAID], "reasoning": "R"}, "the row has thinking for one of 2 replies"),
        ({"messages": [USER, SAID, USER], "cot": "R"}, "the row has thinking, but no reply to its last question"),
        ({"prompt": "Q", "response": "<think>a</think> A", "cot": "b"}, "thinking in the reply and other thinking"),
        ({"prompt": "Q", "response": "\ud83d"}, "'response' holds half a surrogate pair"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(row: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Q", "response": "A"}\n\n' + json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        list(read_conversations(path))
    assert str(caught.value).startswith(f"{path}, line 3: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_of_every_kind_of_file_are_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    row = {"messages": [USER, SAID | {"reasoning_content": "R"}]}
    array = json.dumps([row, row]).encode()
    for name, data in {
        "rows.json": array, "mark.json": b"\xef\xbb\xbf" + array, "rows.txt": gzip.compress(array, mtime=0),
        "lines.jsonl": b"\xef\xbb\xbf" + b"\r\n".join([json.dumps(row).encode()] * 2),
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
    parquet.write_table(pyarrow.Table.from_pylist([row, row]), tmp_path / "rows.parquet")
    for path in tmp_path.iterdir():
        found = list(read_conversations(path))
        assert [one.replies for one in found] == [("<think>R</think> A",)] * 2, path.name
        assert found[0].id == f"{path.name}:1"


def test_broken_json_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": ')
    with pytest.raises(DataError, match=r"rows.jsonl, line 1: not valid JSON"):
        list(read_conversations(tmp_path / "rows.jsonl"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_conversations(tmp_path / "nowhere.jsonl"))


def test_the_loss_is_on_the_replies_and_their_end_of_text() -> None:
    two = Conversation("x", ("Q1", "Q2"), ("A1", "A2"))
    assert trained_text(two, BARE) == [" A1<eos>", " A2<eos>"]
    assert trained_text(two, Rendering("bare", "last", wrap_answer=False)) == [" A2<eos>"]
    named = Conversation("x", ("Q",), ("A<eos>",))
    assert trained_text(named, Rendering("bare", wrap_answer=False, separator="", ends=ENDS)) == ["A<eos>"]
    first_only = Conversation("x", ("Q1", "Q2"), ("A1", "A2"), trained=(True, False))
    assert trained_text(first_only, BARE) == [" A1<eos>"]


@pytest.mark.parametrize(
    ("conversation", "fault"),
    [
        (Conversation("x", ("Q",), ("A",)), None),
        (Conversation("x", (" ",), ("A",)), "with an empty question"),
        (Conversation("x", ("",), ("A",), system="S"), None),
        (Conversation("x", ("Q",), ("<eos> ",)), "with an empty reply"),
        (Conversation("x", ("Q", "Q"), ("A", "<think>p")), "with thinking that is cut off"),
        (Conversation("x", ("Q", "Q"), ("<think>p", "A")), "with thinking that is cut off"),
        (Conversation("x", ("Q", "Q"), ("<think>p", "A"), trained=(False, True)), None),
        (Conversation("x", ("Q",), ("A",), trained=(False,)), "without a reply that is trained"),
        (Conversation("x", ("What is <think>?",), ("<think> opens it.",)), "with thinking that is cut off"),
        (Conversation("x", ("What is <think>?",), ("The tag <think> opens it.",)), None),
    ],
)
def test_conversations_that_cannot_be_trained_have_a_reason(conversation: Conversation, fault: str | None) -> None:
    assert find_fault(conversation, Rendering("bare", ends=ENDS)) == fault


def test_only_the_last_reply_counts_where_only_it_is_trained() -> None:
    conversation = Conversation("x", ("Q", "Q"), ("A", "A"), trained=(True, False))
    assert find_fault(conversation, Rendering("bare", "last")) == "without a reply that is trained"


@pytest.mark.parametrize(
    ("reply", "written"),
    [
        ("A", " <answer>A</answer><eos>"),
        ("<answer>A</answer>", " <answer>A</answer><eos>"),
        ("<think>T</think> A", " <think>T</think> <answer>A</answer><eos>"),
        ("<think>\n\n</think>\n\nA", " <answer>A</answer><eos>"),
        ("T</think> A", " <think>T</think> <answer>A</answer><eos>"),
        ("A<|im_end|>\n<eos>", " <answer>A</answer><eos>"),
        ("<think>T</think> A<eos> ", " <think>T</think> <answer>A</answer><eos>"),
    ],
)
def test_a_bare_reply_gets_the_form_that_the_template_asks_for(reply: str, written: str) -> None:
    assert trained_text(Conversation("x", ("Q",), (reply,)), Rendering("bare", ends=ENDS)) == [written]


@pytest.mark.parametrize(
    ("question", "reply", "template"), [("Q", "A", "direct"), ("问", "<think>想</think>答", "think")]
)
def test_the_prompt_is_the_one_of_reinforcement_learning(question: str, reply: str, template: str) -> None:
    example = tokenize(Conversation("x", (question,), (reply,)), encode, [EOS], Rendering("paper"))
    given = [token for token, trained in zip(example.tokens, example.trained, strict=True) if not trained]
    assert decode(given) == render(Prompt("x", question, template=template), "paper")
    asked = tokenize(Conversation("x", (question,), (reply,), template="think"), encode, [EOS], Rendering("paper"))
    assert decode(list(asked.tokens)).startswith(render(Prompt("x", question, template="think"), "paper"))
