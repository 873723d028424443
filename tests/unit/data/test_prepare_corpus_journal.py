"""The chain-of-thought slice: which rollouts of a journal become documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_lwz.cli.corpus import distil
from megatron_lwz.data.corpora.prepare import prepare
from megatron_lwz.data.corpora.spec import read_spec
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import DataError
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.types import ComponentScore, FinishReason, Prompt, TokenDelta, WeightVersion


def response(word: str) -> str:
    return f"<think>\nplan the {word}\n</think>\n<answer>\nabout the {word}\n</answer>"


GROUPS = [
    # id, kind, template, admitted, [(text, reason, stop, length, writing)]
    (0, "training", "think", 0, [("early best", 1.0, 30.0), ("early worst", 0.1, 10.0)]),
    (1, "training", "think", 5, [("late mid", 0.6, 20.0), ("late best", 0.9, 22.0)]),
    (2, "training", "think", 6, [("late low", 0.2, 12.0), ("late lower", 0.1, 11.0)]),
    (-1, "evaluation", "think", 6, [("held out", 1.0, 40.0)]),
    (3, "training", "direct", 6, [("no thinking asked", 1.0, 40.0)]),
]
UNUSABLE = [
    ("cut off", FinishReason.LENGTH, None, True),
    ("malformed", FinishReason.STOP, "malformed", True),
    ("not judged", FinishReason.STOP, None, False),
]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny) -> Path:
    folder = tmp_path_factory.mktemp("journal")
    (folder / "tokenizer").mkdir()
    tiny.save_tokenizer(
        tiny.train_tokenizer([response("late best"), "<|user|>: question <|assistant|>:"], 300), folder / "tokenizer"
    )
    tokenizer = Tokenizer(folder / "tokenizer")
    journal = Journal(folder / "run" / "journal.sqlite")
    version = WeightVersion(0, 0, "x")
    for number, kind, template, admitted, rollouts in GROUPS:
        prompt = Prompt(str(number), "question", template=template)
        prompt_tokens = tuple(tokenizer.encode("<|user|>: question <|assistant|>:"))
        rows = [(response(word), FinishReason.STOP, length, writing, True) for word, length, writing in rollouts]
        if number == 2:
            rows += [(instead or response(word), why, 1.0, 40.0, valid) for word, why, instead, valid in UNUSABLE]
        drafts = [Draft(number, index) for index in range(len(rows))]
        journal.admit(GroupDraft(number, kind, prompt, prompt_tokens, admitted, drafts))
        for draft, (text, reason, *_) in zip(drafts, rows, strict=True):
            draft.reason, draft.text = reason, text
            draft.stop = "</answer>" if reason is FinishReason.STOP else None
            journal.extend(draft, 0, TokenDelta((1,), (-0.5,), version))
            journal.finish(draft)
        journal.score(
            number,
            [
                {
                    "length": ComponentScore(length),
                    "writing": ComponentScore(writing, valid=valid),
                    "masked": ComponentScore(float("nan"), valid=False),
                }
                for *_, length, writing, valid in rows
            ],
        )
    journal.close()
    return folder


def distilled(folder: Path, name: str, **choice) -> list[str]:
    spec = folder / f"{name}.yaml"
    source = {"name": "thoughts", "format": "journal", "paths": ["run"], "journal": choice, "weight": 0.01}
    tree = {"tokenizer": "tokenizer", "validation": 0, "duplicates": {"near": False}, "sources": [source]}
    spec.write_text(yaml.safe_dump(tree))
    prepare(read_spec(spec), folder / name, workers=1, unit_bytes=100, distil=distil, say=lambda _line: None)
    data, tokenizer = IndexedDataset(str(folder / name / "thoughts_train")), Tokenizer(folder / "tokenizer")
    texts = [data[i].tolist() for i in range(len(data))]
    assert all(ids[-1] == min(tokenizer.eos_ids) for ids in texts)
    return [tokenizer.decode(ids[:-1], skip_special=False) for ids in texts]


def test_the_best_whole_rollout_of_every_prompt_is_taken_with_its_prompt(run_folder: Path) -> None:
    prompt = "<|user|>: question <|assistant|>:"
    expected = [prompt + response(word) for word in ("early best", "late best", "late low")]
    assert distilled(run_folder, "best") == expected


def test_the_choice_can_be_narrowed(run_folder: Path) -> None:
    late = distilled(run_folder, "late", first_step=5, prompt=False)
    assert late == [response("late best"), response("late low")]
    assert distilled(run_folder, "two", first_step=5, prompt=False, per_group=2, keep=0.75) == [
        response(word) for word in ("late mid", "late best", "late low")
    ]
    assert distilled(run_folder, "top", keep=0.3, prompt=False) == [response("early best")]


def test_a_journal_without_a_usable_rollout_is_not_a_slice(run_folder: Path) -> None:
    with pytest.raises(DataError, match="all empty"):
        distilled(run_folder, "none", first_step=100)
    assert not (run_folder / "none").exists()
    (run_folder / "mine").mkdir()
    with pytest.raises(DataError, match="all empty"):
        distilled(run_folder, "mine", first_step=100)
    assert not list((run_folder / "mine").iterdir())
    assert distilled(run_folder, "mine", first_step=5), "other settings are not refused"
    with pytest.raises(DataError, match="no journal there"):
        (run_folder / "run2").mkdir()
        spec = run_folder / "absent.yaml"
        source = {"name": "t", "format": "journal", "paths": ["run2"]}
        spec.write_text(yaml.safe_dump({"tokenizer": "tokenizer", "sources": [source]}))
        prepare(read_spec(spec), run_folder / "x", workers=1, unit_bytes=9, distil=distil, say=lambda _line: None)
