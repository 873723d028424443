"""Instruction rows: every usual format, what is wrong in one line, and which tokens carry the loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_lwz.data.instructions import Conversation, Rendering, parse_conversation, read_conversations, tokenize
from megatron_lwz.data.templates import render
from megatron_lwz.errors import DataError
from megatron_lwz.types import Prompt

EOS = 0
BARE = Rendering("bare", "all", wrap_answer=False)


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


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        {"prompt": "Q", "response": "A"},
        {"prompt": "Q", "completion": "A", "id": 7},
        {"instruction": "Q", "input": "", "output": "A"},
        {"instruction": "Q", "output": "A"},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"conversations": [{"from": "user", "value": "Q"}, {"from": "assistant", "value": "A"}], "messages": None},
    ],
)
def test_the_usual_formats_say_the_same(row: dict) -> None:
    assert parse_conversation(row, "x") == Conversation("x", ("Q",), ("A",))


def test_input_system_and_later_turns_are_kept() -> None:
    assert parse_conversation({"instruction": "Do", "input": "this", "output": "A"}, "x").questions == ("Do\n\nthis",)
    turns = [("system", "S"), ("human", "Q1"), ("gpt", "A1"), ("human", "Q2"), ("gpt", "A2"), ("human", "unanswered")]
    found = parse_conversation({"conversations": [{"from": f, "value": v} for f, v in turns]}, "x")
    assert (found.system, found.questions, found.replies) == ("S", ("Q1", "Q2"), ("A1", "A2"))
    assert decode(list(tokenize(found, encode, [EOS], BARE).tokens)) == (
        "<|user|>: S\n\nQ1 <|assistant|>: A1<eos>\n<|user|>: Q2 <|assistant|>: A2<eos>"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Q", "answer": "A"}, "the row has the keys question, answer; give messages, "),
        ({}, "the row has the keys (none)"),
        ([1], "a row must be a JSON object, not list"),
        ({"messages": "Q"}, "'messages' must be a list of objects with 'role' and 'content'"),
        ({"messages": [{"role": "tool", "content": "Q"}]}, "it has role = 'tool' and the keys role, content"),
        ({"conversations": [{"role": "user", "content": "Q"}]}, "it has from = None and the keys role, content"),
        (
            {"messages": [{"role": "assistant", "content": "A"}]},
            "must alternate user, assistant, …; they are assistant",
        ),
        ({"prompt": "Q", "response": " "}, "a question or a reply is empty"),
        ({"prompt": "Q", "response": "A", "template": "x"}, "'template' must be"),
        ({"prompt": "Q", "response": "A", "system": 3}, "'system' must be a string"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(row: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Q", "response": "A"}\n\n' + json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        list(read_conversations(path))
    assert str(caught.value).startswith(f"{path}, line 3: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


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
    assert trained_text(named, Rendering("bare", wrap_answer=False, separator="")) == ["A<eos>"]


@pytest.mark.parametrize(
    ("reply", "written"),
    [
        ("A", " <answer>A</answer><eos>"),
        ("<answer>A</answer>", " <answer>A</answer><eos>"),
        ("<think>T</think> A", " <think>T</think> <answer>A</answer><eos>"),
        ("<think>T</think> <answer>A", " <think>T</think> <answer>A<eos>"),
    ],
)
def test_a_bare_reply_gets_the_form_that_the_template_asks_for(reply: str, written: str) -> None:
    assert trained_text(Conversation("x", ("Q",), (reply,)), Rendering("bare")) == [written]


@pytest.mark.parametrize(
    ("question", "reply", "template"), [("Q", "A", "direct"), ("问", "<think>想</think>答", "think")]
)
def test_the_prompt_is_the_one_of_reinforcement_learning(question: str, reply: str, template: str) -> None:
    example = tokenize(Conversation("x", (question,), (reply,)), encode, [EOS], Rendering("paper"))
    given = [token for token, trained in zip(example.tokens, example.trained, strict=True) if not trained]
    assert decode(given) == render(Prompt("x", question, template=template), "paper")
    asked = tokenize(Conversation("x", (question,), (reply,), template="think"), encode, [EOS], Rendering("paper"))
    assert decode(list(asked.tokens)).startswith(render(Prompt("x", question, template="think"), "paper"))
