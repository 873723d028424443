"""The short form of `make fuzz`: every parser meets some inputs that no test names."""

from __future__ import annotations

import logging
import random
import sys

import pytest

from tests.fuzz import __main__ as command
from tests.fuzz.mutation import any_value
from tests.fuzz.run import Failure, Target, check, fuzz
from tests.fuzz.targets import TARGETS, find

INPUTS = 120


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", [target.name for target in TARGETS])
def test_no_input_breaks_a_parser(name):
    count, accepted = fuzz(find(name), seed=1, inputs=INPUTS)
    assert count == INPUTS and accepted > 0, "inputs that are all refused test little"


def test_what_breaks_a_parser_is_reported_with_its_input():
    def parse(data: bytes) -> None:
        raise ZeroDivisionError

    with pytest.raises(Failure, match="ZeroDivisionError") as caught:
        check(Target("t", lambda _: b"", parse), b"the input")
    assert caught.value.data == b"the input"


def test_the_same_seed_makes_the_same_inputs():
    first, second = ([target.make(random.Random(3)) for target in TARGETS] for _ in range(2))
    assert first == second
    assert any_value(random.Random(1), ["a"]) == any_value(random.Random(1), ["a"])


def test_a_saved_input_can_be_replayed(tmp_path, monkeypatch, capsys):
    path = tmp_path / "grammar-abc.bin"
    path.write_bytes(b"<answer>a</answer>")
    monkeypatch.setattr(command, "bound_this_process", lambda: None)  # the tests after this one need their memory
    monkeypatch.setattr(sys, "argv", ["fuzz", "--replay", str(path)])
    assert command.main() == 0 and capsys.readouterr().out == "grammar: accepted\n"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("config", b"1e5"),
        ("config", b"run: {seed: " + b"1" * 5000 + b"}"),
        ("overrides", b"run.seed=" + b"1" * 5000),
        ("overrides", b"tra\r\nining."),
        ("load", b"vllm:kv_cache_usage_perc 0.5\nvllm:num_requests_waiting 1e308\nvllm:num_requests_waiting 1e308"),
        ("index", b"MMIDIDX\x00\x00\x01\x00\x00\x00\x000\x03"),
    ],
)
def test_what_fuzzing_found_stays_mended(name, data):
    check(find(name), data)
