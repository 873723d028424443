"""Hostile, broken and merely odd responses against the format grammar: the table is data/format_cases.tsv."""

import json
from pathlib import Path

import pytest

from megatron_lwz.data.text.grammar import ResponseParser, parse_response
from tests.support.grammar_oracle import is_valid

TABLE = Path(__file__).with_name("data") / "format_cases.tsv"


def read_cases():
    section = ""
    for number, line in enumerate(TABLE.read_text(encoding="utf-8").split("\n"), start=1):
        if line.startswith("# "):
            section = line[2:]
        elif line:
            verdict, template, stop, quoted, text = line.split("\t")
            text = "" if text == "(empty)" else json.loads('"' + text.replace('"', '\\"') + '"')
            known = {
                "template": template,
                "stop": None if stop == "-" else stop,
                "quoted": () if quoted == "-" else tuple(quoted.split()),
            }
            yield number, section, None if verdict == "valid" else verdict, known, text


CASES = list(read_cases())


def test_there_are_enough_different_cases():
    assert len({(text, str(known)) for _, _, _, known, text in CASES}) == len(CASES) >= 300


@pytest.mark.parametrize("section", sorted({section for _, section, *_ in CASES}))
def test_every_case_has_its_verdict(section):
    for number, _, fault, known, text in (case for case in CASES if case[1] == section):
        where = f"{TABLE.name}, line {number}: {text!r}"
        assert parse_response(text, **known).fault == fault, where
        assert is_valid(text, **known) == (fault is None), f"{where}: the table or the oracle is wrong"


def in_chunks(text, size, known):
    stop = known["stop"]
    if stop is not None and stop != "</answer>":
        text = text.removesuffix(stop)
    parser = ResponseParser(known["template"], known["quoted"])
    for start in range(0, len(text), size):
        parser.feed(text[start : start + size])
        yield parser


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_every_case_has_the_same_verdict_in_pieces(size):
    for number, _, fault, known, text in CASES:
        parser = ResponseParser(known["template"], known["quoted"])
        for parser in in_chunks(text, size, known):  # noqa: B007
            pass
        assert parser.verdict(stop=known["stop"]) == fault, number
        assert parser.finish(stop=known["stop"]) == parse_response(text, **known), number


def test_what_is_called_hopeless_never_gets_well():
    seen = 0
    for number, _, fault, known, text in CASES:
        hopeless = [parser.hopeless for parser in in_chunks(text, 1, known)]
        assert hopeless == sorted(hopeless), f"line {number}: hope came back"
        if fault is None:
            assert not any(hopeless), number
        seen += any(hopeless)
    assert seen >= 200, "most of the broken cases can be told before they end"
