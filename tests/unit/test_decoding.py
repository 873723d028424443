"""Decoding of nested texts: the bound, and that no decoder ever comes near Python's recursion limit."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest

from megatron_lwz.config import load_config
from megatron_lwz.data.corpora.spec import read_spec
from megatron_lwz.decoding import MAX_DEPTH, NestedTooDeeply, decode_json, decode_yaml, refuse_deep_json
from megatron_lwz.errors import DataError, LwzError
from megatron_lwz.reading import read_rows
from megatron_lwz.rewards.judge_json import read_object
from megatron_lwz.ui.run import Run

DEEP = '{"1":' * 5000
DEEP_YAML = "a: " + "[" * 5000 + "\n"


@pytest.fixture
def finalizers():
    """Collects garbage as often as possible. Yields the errors of a finalizer that needs 100 frames of stack."""
    failed: list[RecursionError] = []

    def needs(frames: int) -> None:
        if frames:
            needs(frames - 1)

    def finalize(phase: str, info: object) -> None:
        try:
            needs(100)
        except RecursionError as error:
            failed.append(error)

    before = gc.get_threshold()
    gc.callbacks.append(finalize)
    gc.set_threshold(1, 1_000_000, 1_000_000)
    yield failed
    gc.set_threshold(*before)
    gc.callbacks.remove(finalize)


def refused(error: type[Exception], parse, *given) -> None:
    with pytest.raises(error, match="nested too deeply"):
        parse(*given)


def test_no_finalizer_runs_at_the_recursion_limit(finalizers: list, tmp_path: Path) -> None:
    with pytest.raises(RecursionError):  # what a decoder without the bound does
        json.loads(DEEP)
    assert finalizers
    finalizers.clear()
    for name, text in (("deep.jsonl", DEEP), ("deep.json", f'[{{"a": 1}}, {DEEP}'), ("config.yaml", DEEP_YAML)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    refused(NestedTooDeeply, decode_json, DEEP)
    refused(NestedTooDeeply, decode_json, DEEP.encode("utf-16"))
    refused(NestedTooDeeply, decode_yaml, "- " * 5000)
    refused(DataError, list, read_rows(tmp_path / "deep.jsonl"))
    refused(DataError, list, read_rows(tmp_path / "deep.json"))
    refused(DataError, load_config, tmp_path / "config.yaml")
    refused(LwzError, load_config, None, ["rollout.urls=" + "[" * 5000])
    refused(DataError, read_spec, tmp_path / "config.yaml")
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    refused(DataError, lambda: Run(tmp_path, "run").config)
    assert read_object(DEEP, ["1"]) is None
    assert not finalizers


@pytest.mark.parametrize("text", ['{"a": "' + "[" * 300 + '"}', '"' + '\\"[' * 300 + '"', "[[1], {}]" + "[" * 300])
def test_only_open_brackets_outside_strings_of_the_value_count(text: str) -> None:
    refuse_deep_json(text)


@pytest.mark.parametrize("decode", [decode_json, decode_yaml])
def test_the_deepest_value_that_is_read(decode) -> None:
    decode("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    refused(NestedTooDeeply, decode, "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


def test_a_broken_text_is_scanned_in_linear_time() -> None:
    refuse_deep_json('["' + '\\"' * 3_000_000)  # quadratic, it would take hours
