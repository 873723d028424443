"""The tool as a user runs it: what it refuses, and what it counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_lwz.cli import common
from tools import make_preference_pairs

GOOD = {"prompt": "Write about the sea.", "chosen": "The sea is wide.", "rejected": "No."}


def run(*arguments: object) -> int:
    return common.run(make_preference_pairs.main, [str(argument) for argument in arguments])


def written(path: Path, *rows: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("option", ["--documents", "--pairs"])
@pytest.mark.parametrize("name", ["train.jsonl", "held_out.jsonl", "report.json", "train.jsonl.part"])
def test_an_input_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, option: str, linked: bool
) -> None:
    out = tmp_path / "out"
    path = written(out / ("mine.jsonl" if linked else name), GOOD)
    if linked:
        (out / name).symlink_to(path)
    before, text = sorted(out.iterdir()), path.read_bytes()
    assert run(option, path, "--out", out) == common.USER_ERROR
    error = capsys.readouterr().err
    assert f"{name}: is one of the inputs; name another output" in error and error.count("\n") == 1
    assert sorted(out.iterdir()) == before and path.read_bytes() == text


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--per-document", "-1", "must be at least 1"),
        ("--per-document", "0", "must be at least 1"),
        ("--tolerance", "-0.1", "must be from 0 to below 1"),
        ("--tolerance", "nan", "must be from 0 to below 1"),
        ("--held-out", "2", "must be from 0 to below 1"),
        ("--held-out", "half", "'half' is no number"),
    ],
)
def test_options_have_bounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, words: str
) -> None:
    path = written(tmp_path / "p.jsonl", GOOD)
    assert run("--pairs", path, "--out", tmp_path / "out", f"{option}={value}") == common.USER_ERROR
    error = capsys.readouterr().err
    assert f"argument {option}: " in error and words in error and error.count("\n") == 1


def test_a_file_without_rows_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "p.jsonl")
    for option in ("--documents", "--pairs"):
        assert run(option, path, "--out", tmp_path / "out") == common.USER_ERROR
        assert capsys.readouterr().err == f"error: {path}: holds no row: give a file with rows\n"
    assert not (tmp_path / "out").exists()


def test_the_report_counts_what_is_left_out_by_reason(tmp_path: Path) -> None:
    replies = ("<answer>A.</answer> PLANT", "<answer>A.", "A.<|endoftext|>B.")
    documents = written(tmp_path / "d.jsonl", *({"prompt": "Q", "response": reply} for reply in replies))
    pairs = written(tmp_path / "p.jsonl", GOOD, GOOD | {"rejected": "A.<|im_end|>B."})
    assert run("--documents", documents, "--pairs", pairs, "--out", tmp_path / "out", "--held-out", "0") == 0
    counts = json.loads((tmp_path / "out" / "report.json").read_text())["counts"]
    outside = "in another form than <think>…</think> <answer>…</answer> (text outside think and answer)"
    assert {name: count for name, count in counts.items() if "read" in name or ("left out: " in name and count)} == {
        "documents read": 3,
        f"documents left out: {outside}": 1,
        "documents left out: with an answer that is cut off": 1,
        "documents left out: with an end-of-text token inside a reply": 1,
        "pairs read": 2,
        "pairs left out: with an end-of-text token inside a reply": 1,
    }
