"""Rendering, the tokens of a pair, and their order."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from megatron_lwz.data.preferences.batches import PairSource, pair_batch, tokenize_pairs
from megatron_lwz.data.preferences.pairs import PreferencePair
from megatron_lwz.data.preferences.rendering import (
    FILE,
    Rendering,
    Reply,
    load_rendering,
    rendering_for,
    save_rendering,
    split_reply,
)
from megatron_lwz.errors import DataError
from tests.support.engine_model import write_engine_model
from tests.support.tiny_qwen2 import write_word_tokenizer


def pair(number: int, **other: object) -> PreferencePair:
    return PreferencePair(f"p{number}", "q", "a" * (number + 1), "b", **other)  # type: ignore[arg-type]


def encode(text: str) -> list[int]:
    return list(text.encode())


def test_renderings() -> None:
    reply = Reply(" piece ", "plan")
    assert Rendering()("ask", reply) == "<|user|>: ask <|assistant|>: piece<|im_end|>"
    assert (
        Rendering(thinking=True, end="#")("写", reply)
        == "<|用户|>: 写 <|助手|>: <think>plan</think> <answer>piece</answer>#"
    )
    chat = Rendering("chat")("ask", reply)
    assert chat.endswith("<|im_start|>user\nask<|im_end|>\n<|im_start|>assistant\npiece<|im_end|>\n")


def test_replies_are_split_at_their_tags() -> None:
    assert split_reply("plain") == Reply("plain")
    assert split_reply("<think>plan</think>\n<answer>piece</answer>") == Reply("piece", "plan")
    assert split_reply("<think>plan</think> piece") == Reply(" piece", "plan")
    assert split_reply("<think>plan</think> <answer>not closed") == Reply("not closed", "plan"), "as in a rollout"
    assert split_reply("The tag <answer> opens it.") == Reply("The tag <answer> opens it.")


def test_a_text_never_ends_in_the_padding_token(tmp_path: Path) -> None:
    write_engine_model(tmp_path)
    assert rendering_for(tmp_path, "markers", thinking=False).end == "<|endoftext|>"
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"})
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.get("pad_token_id") is None
    assert rendering_for(tmp_path, "markers", thinking=False).end == ""


def test_a_tokenizer_that_takes_the_closing_token_for_an_unknown_word_closes_with_its_own(tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path, ["w0", "w1"], ["<|user|>"])
    assert rendering_for(tmp_path, "markers", thinking=False).end == "<|endoftext|>"


def test_the_rendering_travels_with_the_weights(tmp_path: Path) -> None:
    assert load_rendering(tmp_path) is None
    save_rendering(tmp_path, Rendering("chat", True, "x"))
    assert load_rendering(tmp_path) == Rendering("chat", True, "x")
    (tmp_path / FILE).write_text('{"template": "other", "thinking": false, "end": ""}')
    with pytest.raises(DataError, match="template 'other'"):
        load_rendering(tmp_path)


def test_a_batch_marks_each_text_end_and_counts_pairs() -> None:
    pairs = [pair(0), pair(1, margin=0.5), pair(90), pair(91)]
    pairs += [PreferencePair("p", "q", "<eos> ", "b"), PreferencePair("p", "q", "a<eos>c", "b")]
    kept, left_out = tokenize_pairs(pairs, encode, Rendering(end=""), maximum_tokens=60, ends=["<eos>"])
    assert [p.pair.id for p in kept] == ["p0", "p1"]
    assert str(left_out) == (
        "4 left out (2 longer than 60 tokens (training.sequence_length), 1 with an empty reply, "
        "1 with an end-of-text token inside a reply)"
    )
    batch = pair_batch(kept)
    assert batch.denominator == 2 and batch.margins.tolist() == [1.0, 0.5] and list(batch.ids) == ["p0", "p1"]
    lengths = [len(kept[0].chosen), len(kept[0].rejected), len(kept[1].chosen), len(kept[1].rejected)]
    assert batch.sequences.lengths() == [length + 1 for length in lengths]
    assert batch.sequences.prompt_lengths.tolist() == lengths
    assert batch.predictions == sum(lengths)
    assert torch.equal(batch.sequences.tokens[: lengths[0]], kept[0].chosen.long())


def test_a_reply_loses_the_tokens_that_end_it() -> None:
    ended = PreferencePair("p", "q", "<think>T</think> good<|im_end|>\n<eos>", "bad<eos>")
    (kept,), _ = tokenize_pairs([ended], encode, Rendering(), maximum_tokens=99, ends=["<eos>", "<|im_end|>"])
    assert bytes(kept.chosen.tolist()) == b"<|user|>: q <|assistant|>: good<|im_end|>"
    assert bytes(kept.rejected.tolist()) == b"<|user|>: q <|assistant|>: bad<|im_end|>"


@pytest.mark.parametrize("margin", [math.nan, math.inf, 1e39])
def test_a_margin_that_is_not_finite_in_fp32_reaches_no_batch(margin: float) -> None:
    kept, _ = tokenize_pairs([pair(0), pair(1, margin=margin)], encode, Rendering(), maximum_tokens=99)
    with pytest.raises(DataError, match="pair 'p1' has the margin"):
        pair_batch(kept)


def test_every_epoch_takes_every_pair_once() -> None:
    kept, _ = tokenize_pairs([pair(n) for n in range(7)], encode, Rendering(), maximum_tokens=99)
    source = PairSource(kept, pair_batch, section="reward_model", seed=3, epochs=2)
    seen, cursor = [], 0
    while cursor < 14:
        before = cursor
        batch, cursor = source.take(cursor, 4)
        assert cursor > before
        seen += list(batch.ids)
    assert sorted(seen[:7]) == sorted(seen[7:]) == [f"p{n}" for n in range(7)] and seen[:7] != seen[7:]
    with pytest.raises(DataError, match=r"reward_model\.epochs"):
        source.take(14, 1)
