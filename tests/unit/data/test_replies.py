"""Replies: what is taken off them, and which are no whole reply or no target of fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_lwz.data.replies import LeftOut, clean, end_texts, find_fault, find_target_fault, strip_ends, wrap
from megatron_lwz.data.text.grammar import parse_response
from megatron_lwz.data.tokenizer import Tokenizer
from tests.support.tiny_qwen2 import write_word_tokenizer

ENDS = ("<|endoftext|>", "<|im_end|>", "</s>")
FORM = "in another form than <think>…</think> <answer>…</answer> "


@pytest.mark.parametrize(
    ("reply", "stripped"),
    [
        ("A", "A"),
        (" A \n", " A \n"),
        ("A<|endoftext|>", "A"),
        ("A<|im_end|>\n", "A"),
        ("A \n<|im_end|>\n<|endoftext|><|endoftext|> ", "A"),
        ("A</s>", "A"),
        ("<|im_end|>", ""),
        ("<think>T</think><answer>A</answer><|endoftext|>", "<think>T</think><answer>A</answer>"),
        ("A<|im_end|> and on", "A<|im_end|> and on"),
    ],
)
def test_tokens_that_end_a_text_are_taken_off(reply: str, stripped: str) -> None:
    assert strip_ends(reply, ENDS) == stripped


@pytest.mark.parametrize(
    ("reply", "cleaned"),
    [
        ("<think>\n\n</think>\n\nA", "A"),
        ("<think></think><answer>A</answer>", "<answer>A</answer>"),
        ("T</think>\n\nA", "<think>T</think>\n\nA"),
        ("<think>T</think> A", "<think>T</think> A"),
        ("<think></think>", ""),
    ],
)
def test_think_segments_get_their_usual_form(reply: str, cleaned: str) -> None:
    assert clean(reply) == cleaned


@pytest.mark.parametrize(
    ("reply", "fault", "raw_fault"),
    [
        ("A", None, None),
        ("<answer>A</answer>", None, None),
        ("<think>T</think> A", None, None),
        ("<think>T</think>\n<answer>A</answer>\n", None, None),
        ("", "with an empty reply", "with an empty reply"),
        ("<think>T</think>\n", "with an empty reply", "with an empty reply"),
        ("<think>T</think><answer> </answer>", "with an empty reply", "with an empty reply"),
        ("<answer>", "with an empty reply", "with an empty reply"),
        ("<think>p and on", "with thinking that is cut off", "with thinking that is cut off"),
        ("<think>p <answer>A</answer>", "with thinking that is cut off", "with thinking that is cut off"),
        ("<answer>A", "with an answer that is cut off", "with an answer that is cut off"),
        ("<think>T</think> <answer>A", "with an answer that is cut off", "with an answer that is cut off"),
        ("A<|im_end|>\nmore", "with an end-of-text token inside a reply", "with an end-of-text token inside a reply"),
        ("<thinking>T</thinking> A", "with thinking in other tags than <think>", None),
        ("<|begin_of_thought|>T<|end_of_thought|>", "with thinking in other tags than <think>", None),
        ("Sure: <answer>A</answer>", f"{FORM}(text outside think and answer)", None),
        ("<answer>A</answer> Bye.", f"{FORM}(text outside think and answer)", None),
        ("Sure. <think>T</think> A", f"{FORM}(unexpected <think>)", None),
        ("<think>T</think> A</answer>", f"{FORM}(unexpected </answer>)", None),
    ],
)
def test_replies_that_are_no_target_have_a_reason(reply: str, fault: str | None, raw_fault: str | None) -> None:
    assert find_target_fault(reply, wrapped=True, ends=ENDS) == fault
    assert find_target_fault(reply, wrapped=False, ends=ENDS) == raw_fault
    if fault is None:
        assert parse_response(wrap(reply), "think" if reply.startswith("<think>") else "direct").valid


def test_a_reply_may_name_the_tags_that_its_question_names() -> None:
    named = "The tag <think> opens it."
    assert find_target_fault(named, wrapped=True) is not None
    assert find_target_fault(named, wrapped=True, quoted={"<think>"}) is None


def test_cut_thinking_is_never_wrapped_into_an_answer() -> None:
    assert wrap("<think>p and on") == "<think>p and on" and find_fault("<think>p and on") is not None


def test_left_out_rows_are_shown_by_reason() -> None:
    left_out = LeftOut(["tied", "with an empty reply", "tied"])
    assert str(left_out) == "3 left out (2 tied, 1 with an empty reply)" and str(LeftOut()) == "0 left out"
    assert left_out.all_of(3) == "none of 3 rows can be used: 2 tied, 1 with an empty reply; give other rows"
    assert LeftOut().all_of(0) == "holds no row: give other rows"


def test_the_ends_are_those_of_the_tokenizer_too_but_no_plain_word(tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path, ["w0", "w1"], ["</s>"])
    tokenizer = Tokenizer(tmp_path)
    ids = [tokenizer.encode(text)[0] for text in ("</s>", "w1")]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert end_texts(Tokenizer(tmp_path)) == ("<|endoftext|>", "<|im_end|>", "</s>")
