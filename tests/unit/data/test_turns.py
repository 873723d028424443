"""Message lists: every published shape gives its turns, no text is lost, and what cannot be read is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from megatron_lwz.data.turns import Turn, add_thinking, as_text, first_request, parse_said, parse_turns, reasoning_of

ASK = {"role": "user", "content": "Q"}
QA = [Turn("user", "Q"), Turn("assistant", "A")]


def say(**more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "A"} | more


SAME: dict[str, Any] = {
    "openai": [ASK, say()],
    "sharegpt": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
    "mixed keys": [{"from": "user", "content": "Q"}, {"role": "model", "value": "A"}],
    "other names": [{"role": " Prompter ", "text": "Q"}, {"from": "ChatGPT", "value": "A"}],
    "null columns of Parquet": [
        ASK | {"from": None, "value": None, "tool_calls": None, "function_call": {"name": None, "arguments": None}},
        say(tool_calls=[], reasoning_content=None, weight=None, images=[], audio=None, refusal=None),
    ],
    "metadata": [ASK | {"timestamp": 3, "header": {"a": "b"}, "name": "Bob"}, say(toxic=False, info={"x": "y"})],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A", "image": None, "mimeType": None}]},
    ],
    "texts as parts": [{"role": "user", "content": ["Q"]}, say(content=[{"type": "output_text", "text": "A"}])],
    "json text": json.dumps([ASK, say()], indent=1),
    "one object a question": [{"human": "Q", "assistant": "A"}],
    "input and output": [{"input": "Q", "output": "A"}],
    "weights of slimorca": [ASK | {"weight": 0.0}, say(weight=1.0)],
    "modes": [ASK, say(reasoning="off", thinking=False, think="")],
}


@pytest.mark.parametrize("value", SAME.values(), ids=SAME)
def test_published_shapes_give_the_same_turns(value: Any) -> None:
    assert parse_turns(value, "messages") == QA


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        (say(reasoning_content="R"), "<think>R</think> A"),
        (say(reasoning="R"), "<think>R</think> A"),
        (say(thinking="R", reasoning="R "), "<think>R</think> A"),
        (say(reasoning_content="<think>R</think>"), "<think>R</think> A"),
        (say(content="<think>\nR</think>A", reasoning_content="R"), "<think>\nR</think>A"),
        (say(content="R</think> A", reasoning="R"), "R</think> A"),
        (say(content=[{"type": "thinking", "thinking": "R"}, {"type": "text", "text": "A"}]), "<think>R</think> A"),
        (say(content=[{"type": "text", "text": "A "}, {"type": "text", "text": "b"}]), "A b"),
        (say(content=["One.", "Two."]), "One.\nTwo."),
        (say(content=""), ""),
    ],
)
def test_thinking_beside_a_reply_and_all_its_parts_are_kept_once(turn: dict[str, Any], text: str) -> None:
    assert parse_turns([turn], "messages") == [Turn("assistant", text)]


@pytest.mark.parametrize(
    "switch", [{"weight": 0}, {"train": False}, {"loss": False}, {"training": False}, {"weight": 1, "loss": 0}]
)
def test_replies_that_are_not_to_be_trained_are_marked(switch: dict[str, Any]) -> None:
    assert parse_turns([ASK, say(**switch)], "messages") == [QA[0], Turn("assistant", "A", trained=False)]


def test_system_and_developer_turns_are_alike() -> None:
    found = parse_turns([{"role": "developer", "content": "S"}, {"role": "System", "content": "T"}], "messages")
    assert found == [Turn("system", "S"), Turn("system", "T")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Q", "'m' must be a list of turns"),
        (3, "'m' must be a list of turns"),
        (["Q"], "turn 1 of 'm' must be an object, not 'Q'"),
        ([ASK, {"role": "tool", "content": "x"}], "turn 2 of 'm' has the role 'tool': tools are not supported"),
        ([{"from": "observation", "value": "x"}], "has the role 'observation': tools"),
        (
            [{"role": "critic", "content": "x"}],
            "no known role (role = 'critic', keys role, content): give one of system",
        ),
        ([{"content": "x"}], "no known role (role = 'none', keys content)"),
        ([say(content=None, tool_calls=[{"id": 1}])], "turn 1 of 'm' has 'tool_calls', which cannot be read"),
        ([say(function_call={"name": "f", "arguments": "{}"})], "has 'function_call'"),
        ([say(images=["a.png"])], "has 'images'"),
        ([say(content=None)], "turn 1 of 'm' has no text: 'content' must be a text or a list of text parts, not null"),
        ([{"from": "gpt"}], "has no text: 'content'"),
        ([say(content=3)], "'content' must be a text or a list of text parts, not 3"),
        ([say(value="B")], "has different texts in 'content' and 'value'"),
        ([ASK | {"content": [{"type": "image_url", "image_url": {"url": "u"}}]}], "part that is no text (image_url)"),
        ([ASK | {"content": [{"type": "text", "text": "a", "image": "data:"}]}], "part that is no text (image)"),
        ([ASK | {"content": [{"type": "tool_result", "text": "a"}]}], "part that is no text (tool_result)"),
        ([ASK | {"content": [7]}], "part that is no text (7)"),
        ([say(weight=0.5)], "has weight = 0.5: give 0 or 1"),
        ([say(train="no")], "has train = 'no'"),
        ([say(train_detail=[{"begin_offset": 0}])], "has 'train_detail'"),
        ([ASK | {"reasoning": "hm"}], "holds thinking, but its role is 'user'"),
        ([say(reasoning="a", thinking="b")], "different thinking in 'reasoning' and 'thinking'"),
        ([say(content="<think>a</think> A", reasoning="b")], "thinking in the reply and other thinking beside it"),
        ([say(reasoning_details=[{"type": "summary"}])], "'reasoning_details' must be a text"),
        ("[{'role': 'user', 'content': 'Q'}]", "'m' holds a message list as a text: not valid JSON"),
        ('[{"role": "user", "content": "\\ud83d"}]', "'[0].content' holds half a surrogate pair"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_turn(value: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_turns(value, "m")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_column_may_hold_a_text_or_turns() -> None:
    assert parse_said("Q", "prompt", "user") == [QA[0]]
    assert parse_said('[{"a": 1}]', "prompt", "user") == [Turn("user", '[{"a": 1}]')], "JSON without turns is a text"
    assert parse_said([ASK], "prompt", "user") == parse_said(ASK, "prompt", "user") == [QA[0]]
    assert parse_said(json.dumps([ASK]), "prompt", "user") == [QA[0]]
    assert parse_said({"messages": [ASK], "tools": []}, "input", "user") == [QA[0]]
    with pytest.raises(ValueError, match="'input' has 'tools'"):
        parse_said({"messages": [ASK], "tools": [{}, {"a": 1}]}, "input", "user")
    with pytest.raises(ValueError, match="'prompt' must be a text or a list of turns"):
        parse_said(4, "prompt", "user")


@pytest.mark.parametrize(
    ("value", "request_"),
    [
        ("Q", ("Q", False)),
        ([ASK, {"role": "tool", "content": None}, {"role": "user", "content": "later"}], ("Q", False)),
        ([{"role": "system", "content": "S"}, ASK], ("Q", True)),
        ([say(), {"human": "Q", "assistant": "A"}], ("Q", False)),
        (json.dumps([ASK]), ("Q", False)),
        ([say()], (None, False)),
        ([], (None, False)),
        (7, (None, False)),
    ],
)
def test_the_first_request_needs_no_readable_rest(value: Any, request_: tuple[str | None, bool]) -> None:
    assert first_request(value, "conversation") == request_


def test_a_request_with_a_part_that_is_no_text_is_named() -> None:
    with pytest.raises(ValueError, match=r"turn 1 of 'chat' has a part that is no text \(image_url\)"):
        first_request([ASK | {"content": [{"type": "image_url", "image_url": {"url": "u"}}]}], "chat")


def test_conversations_as_one_text_name_the_roles_only_where_there_are_several_turns() -> None:
    system = Turn("system", "S")
    assert as_text([QA[0]]) == "Q" and as_text([system, QA[0]]) == "S\n\nQ" and as_text([]) == ""
    assert as_text([system, *QA, QA[0]]) == "S\n\nuser: Q\n\nassistant: A\n\nuser: Q"


def test_blank_thinking_is_none() -> None:
    assert add_thinking("A", " \n", "x") == "A" and reasoning_of({"cot": " ", "reasoning": float("nan")}, "x") == ""
