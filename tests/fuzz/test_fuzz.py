"""The short form of `make fuzz`: every parser meets some inputs that no test names."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.mutation import any_value
from tests.fuzz.run import Failure, Target, check, fuzz
from tests.fuzz.targets import TARGETS, find

ROOT = Path(__file__).parents[2]
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


def test_a_saved_input_can_be_replayed(tmp_path):
    path = tmp_path / "grammar-abc.bin"
    path.write_bytes(b"<answer>a</answer>")
    command = [sys.executable, "-m", "tests.fuzz", "--replay", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "grammar: accepted\n"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("config", b"1e5"),
        ("overrides", b"tra\r\nining."),
        ("load", b"vllm:kv_cache_usage_perc 0.5\nvllm:num_requests_waiting 1e308\nvllm:num_requests_waiting 1e308"),
        ("index", b"MMIDIDX\x00\x00\x01\x00\x00\x00\x000\x03"),
    ],
)
def test_what_fuzzing_found_stays_mended(name, data):
    check(find(name), data)
