"""The demo's data: what the corpus teaches, and that nothing of the held-out prompts is in it."""

import json
import re
import sys
from pathlib import Path
from statistics import mean

import pytest

from megatron_lwz.data.prompts import read_prompts
from megatron_lwz.data.templates import render
from megatron_lwz.data.text.grammar import parse_response
from megatron_lwz.data.text.length import count_units
from megatron_lwz.data.text.near_duplicates import find_duplicates
from megatron_lwz.types import Prompt

EXAMPLE = Path(__file__).parents[3] / "examples" / "tiny_cpu"


@pytest.fixture(scope="module")
def corpus(tiny):
    """(prompt, response, asked lower, asked upper) of 1,000 documents; a response ends where `</answer>` would stop it."""
    parsed = []
    for text in tiny.documents(1000, seed=5, held_out=tiny.held_out_pairs(EXAMPLE / "held_out.jsonl")):
        prompt, response = re.fullmatch(r"(<\|.+?\|>: .*? <\|.+?\|>:)( .*)", text, flags=re.DOTALL).groups()
        asked = re.search(r"(\d+)(?: to | and |到)(\d+)", prompt)
        parsed.append((prompt, re.sub(r"(</answer>).*", r"\1", response, flags=re.DOTALL), *map(int, asked.groups())))
    return parsed


def test_less_than_half_of_the_corpus_does_what_the_rewards_want(corpus):
    responses = [parse_response(response) for _, response, _, _ in corpus]
    lengths = [count_units(r.answer or "") for r in responses]
    in_range = mean(lower <= n <= upper for n, (_, _, lower, upper) in zip(lengths, corpus, strict=True))
    assert 0.2 < mean(r.valid for r in responses) < 0.4
    assert 0.25 < in_range < 0.45
    assert len({r.fault for r in responses}) >= 4
    assert 0.1 < mean(find_duplicates(r.answer or "").share for r in responses) < 0.2


def test_as_many_paragraphs_as_the_range_asks_for_always_fit(corpus):
    """Otherwise no policy could reach the asked length: n paragraphs must lie in the (n − 2)-nd range."""
    ranges = sorted({(lower, upper) for _, _, lower, upper in corpus})
    assert len(ranges) == 4
    for _, response, _, _ in corpus:
        answer = parse_response(response).answer
        count = len((answer or "").strip().splitlines())
        if 2 <= count <= 5:
            lower, upper = ranges[count - 2]
            assert lower <= count_units(answer) <= upper


def test_a_prompts_tokens_are_a_prefix_of_its_documents_tokens(tiny, corpus):
    tokenizer = tiny.train_tokenizer([p + r for p, r, _, _ in corpus[:300]], 900)
    for prompt, response, _, _ in corpus[:300]:
        tokens = tokenizer.encode(prompt + response).ids
        assert tokens == tokenizer.encode(prompt).ids + tokenizer.encode(response).ids


def test_the_example_prompts_are_enough_disjoint_and_like_the_corpus(tiny):
    training, held_out = (read_prompts(EXAMPLE / name) for name in ("prompts.jsonl", "held_out.jsonl"))
    assert len(training) >= 64 and len(held_out) >= 32
    for prompts in (training, held_out):
        assert {p.language for p in prompts} == {"en", "zh"}
        assert len({(p.length.lower, p.length.upper) for p in prompts}) == 4
        assert len({p.text for p in prompts}) == len(prompts)
        assert all(f"{p.length.lower}" in p.text and f"{p.length.upper}" in p.text for p in prompts)
    held_pairs = tiny.held_out_pairs(EXAMPLE / "held_out.jsonl")
    assert not held_pairs & {(p.extra["topic"], p.length.lower) for p in training}
    documents = "\n".join(tiny.documents(2000, seed=1, held_out=held_pairs))
    assert not any(render(p, "bare") in documents for p in held_out)
    assert all(p.extra["topic"] in documents for p in held_out)


def test_the_command_writes_the_same_folder_twice(tiny, tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        argv = ["make_tiny_data.py", "--out", str(tmp_path / name), "--documents", "60", "--vocabulary", "400"]
        monkeypatch.setattr(sys, "argv", argv)
        tiny.main()
    assert "60 documents" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["corpus.jsonl", "good.jsonl", "tokenizer.json", "tokenizer_config.json"]
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    rows = [json.loads(line) for line in (tmp_path / "a" / "corpus.jsonl").read_text().splitlines()]
    assert len(rows) == 60 and not any("<|endoftext|>" in row["text"] for row in rows)  # pretraining ends each itself
    assert render(Prompt("x", "写。"), "bare")[:8] in rows[1]["text"]
