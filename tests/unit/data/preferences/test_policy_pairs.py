"""Pairs as the policy sees them: their text, their tokens, what is left out."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_lwz.data.preferences.formats import read_pairs
from megatron_lwz.data.preferences.pairs import PreferencePair
from megatron_lwz.data.preferences.policy_pairs import ReplyForm, policy_pair_batch, tokenize_policy_pairs

END = 7


def encode(text: str) -> list[int]:
    return list(text.encode())


def text_of(tokens: list[int]) -> str:
    return bytes(tokens).decode()


def test_a_reply_follows_its_prompt_and_ends_with_one_token() -> None:
    pairs = [PreferencePair("a", "ask", "good", " bad<|im_end|>"), PreferencePair("b", "q", "x", "y")]
    (first, second), left_out = tokenize_policy_pairs(pairs, encode, END, ReplyForm("bare"), maximum_tokens=99)
    prompt = "<|user|>: ask <|assistant|>:"
    assert first.prompt_length == len(prompt) and first.chosen[-1] == first.rejected[-1] == END
    assert text_of(first.chosen[:-1].tolist()) == f"{prompt} good"
    assert text_of(first.rejected[:-1].tolist()) == f"{prompt} bad", "it begins with white space itself"
    assert not left_out
    batch = policy_pair_batch([first, second])
    assert batch.denominator == 2 and list(batch.ids) == ["a", "b"]
    assert batch.predictions == len(" good") + len(" bad") + 2 * len(" x") + 4
    assert batch.sequences.prompt_lengths.tolist() == [first.prompt_length] * 2 + [second.prompt_length] * 2


def test_the_template_is_the_pairs_own_or_that_of_its_chosen_reply() -> None:
    thought = "<think>plan</think> <answer>piece</answer>"
    pairs = [
        PreferencePair("own", "q", "no tags", thought, template="think"),
        PreferencePair("thinks", "q", thought, "no tags"),
        PreferencePair("direct", "q", "no tags", thought),
    ]
    kept, _ = tokenize_policy_pairs(pairs, encode, END, ReplyForm("paper"), maximum_tokens=9999)
    own, thinks, direct = (text_of(pair.chosen[: pair.prompt_length].tolist()) for pair in kept)
    assert own == thinks != direct and "<think>" in own and "<think>" not in direct


def test_wrapping_gives_the_form_of_fine_tuning_and_is_off_for_a_runs_own_texts() -> None:
    form = ReplyForm("bare", wrap_answer=True)
    assert form.reply("piece<|endoftext|>") == " <answer>piece</answer>"
    assert ReplyForm("bare").reply("plan</think> piece") == " plan</think> piece", "nothing is repaired"


def test_what_is_left_out_is_counted() -> None:
    pairs = [
        PreferencePair("long", "q", "x" * 90, "y"),
        PreferencePair("inside", "q", "x<|im_end|>more", "y"),
        PreferencePair("empty", "q", "x", "<|im_end|>"),
    ]
    kept, left_out = tokenize_policy_pairs(pairs, encode, END, ReplyForm("bare"), maximum_tokens=99)
    assert not kept and left_out == {
        "longer than 99 tokens (training.sequence_length)": 1,
        "with an end-of-text token inside a reply": 1,
        "with an empty reply": 1,
    }


def test_a_rejected_reply_may_have_the_form_that_is_its_fault(tmp_path: Path) -> None:
    good, cut = "<think>a</think> <answer>b</answer>", "<think>and then"
    rows = [
        {"prompt": "q", "chosen": good, "rejected": cut, "template": "think"},
        {"prompt": "q", "chosen": cut, "rejected": good},
        {"prompt": "q", "chosen": good, "rejected": "<think>a</think> <answer>b</answer> more"},
        {"prompt": "q", "chosen": good, "rejected": " "},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, third, fourth = read_pairs(tmp_path / "rows.jsonl", any_rejected=True)
    assert isinstance(first, PreferencePair) and first.rejected == cut and first.template == "think"
    assert second == "with thinking that is cut off" and fourth == "with an empty reply"
    assert isinstance(third, PreferencePair) and third.template is None
    assert not any(isinstance(pair, PreferencePair) for pair in read_pairs(tmp_path / "rows.jsonl"))
    assert PreferencePair(**{**vars(first)}).row()["template"] == "think" and "template" not in third.row()
