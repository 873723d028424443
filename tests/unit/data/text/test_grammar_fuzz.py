"""Random strings through the stream parser in random chunks: the same verdict as in one piece, and as the oracle's."""

import itertools
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_lwz.data.text.grammar import ResponseParser, parse_response
from megatron_lwz.rewards.length import LengthMeter, count_units
from tests.support.grammar_oracle import TAGS, is_valid

HALVES = [tag[:n] for tag in TAGS for n in (1, 2, len(tag) - 1)] + [tag[n:] for tag in TAGS for n in (1, 2)]
PLAIN = [
    " ",
    "\n",
    "\u3000",
    "\u200b",
    "x",
    "don't",
    "春天",
    "<",
    ">",
    "</",
    "&lt;",
    "<Think>",
    "<|user|>",
    "\U0001f30a",
]
PIECE = st.one_of(
    st.sampled_from([*TAGS, *TAGS, *TAGS, *HALVES, *PLAIN]),
    st.text(max_size=4),
    st.sampled_from(["<think>t</think>", "<answer>a</answer>", "<think>t</think><answer>"]),
)
STRINGS = st.lists(PIECE, max_size=10).map("".join)
TEMPLATES = st.sampled_from(["think", "think", "direct"])
STOPS = st.sampled_from([None, None, "</answer>", "<|user|>"])
QUOTED = st.one_of(st.just(()), st.sets(st.sampled_from(TAGS)).map(tuple))
CUTS = st.lists(st.floats(0, 1), max_size=6)


def ending(parser):
    """A text that makes what the parser has read valid, if anything can."""
    rest = {
        "before": "<think>t</think><answer>a</answer>",
        "think": "t</think><answer>a</answer>",
        "between": "<answer>a</answer>",
        "answer": "a</answer>",
        "after": "",
    }[parser.segment]
    if parser.segment in ("think", "answer"):
        return rest
    return rest.removeprefix(parser._held)


def check(text, template, stop, quoted, cuts):
    whole = parse_response(text, template, stop=stop, quoted=quoted)
    assert whole.valid == is_valid(text, template, stop=stop, quoted=quoted)
    fed = text.removesuffix(stop) if stop == "<|user|>" else text
    places = sorted({round(cut * len(fed)) for cut in cuts} | {0, len(fed)})
    parser = ResponseParser(template, quoted)
    meter = LengthMeter(template, quoted=quoted)
    for start, end in itertools.pairwise(places):
        parser.feed(fed[start:end])
        meter.feed(fed[start:end])
        before = ResponseParser(template, quoted)
        before.feed(fed[:end])
        now = (parser.segment, parser.fault, parser.hopeless, parser.verdict(), parser.verdict(stop="</answer>"))
        assert now == (
            before.segment,
            before.fault,
            before.hopeless,
            before.verdict(),
            before.verdict(stop="</answer>"),
        )
        ended = fed[:end] + (stop if stop == "<|user|>" else "")
        assert parser.verdict(stop=stop) == parse_response(ended, template, stop=stop, quoted=quoted).fault
        if parser.hopeless:
            assert not whole.valid
        else:
            assert is_valid(fed[:end] + ending(parser), template, quoted=quoted)
    assert parser.verdict(stop=stop) == whole.fault
    assert parser.finish(stop=stop) == meter.finish(stop=stop) == whole
    assert (meter.thinking, meter.answer) == (count_units(whole.think or ""), count_units(whole.answer or ""))


@given(STRINGS, TEMPLATES, STOPS, QUOTED, CUTS)
@settings(max_examples=500)
def test_any_string_in_any_chunks_gets_one_verdict(text, template, stop, quoted, cuts):
    check(text, template, stop, quoted, cuts)


def decode(data):
    """The arguments of `check` out of raw bytes: cheap to draw, so that many can be."""
    head, cuts, body = data[:3], data[3:7], data[7:]
    pieces = [
        *TAGS,
        *TAGS,
        *TAGS,
        *HALVES,
        *PLAIN,
        "<think>t</think>",
        "<answer>a</answer>",
        "<think>t</think><answer>",
    ]
    parts = [pieces[b % 64] if b % 64 < len(pieces) else chr(0x20 + b * 97 % 0x9FE0) for b in body]
    if head[1] & 64:  # well formed but for what the pieces hold
        middle = len(parts) // 2
        parts = ["<think>", *parts[:middle], "</think>\n<answer>", *parts[middle:], "</answer>"]
    text = "".join(parts)
    quoted = tuple(tag for place, tag in enumerate(TAGS) if head[0] >> place & 1) if head[0] & 16 else ()
    template, stop = ("think", "think", "direct")[head[1] % 3], (None, None, "</answer>", "<|user|>")[head[2] % 4]
    return text, template, stop, quoted, [byte / 255 for byte in cuts]


def test_eight_thousand_seeded_strings_get_one_verdict():
    rng = random.Random(7)
    for _ in range(8_000):
        check(*decode(rng.randbytes(rng.randint(7, 21))))


@pytest.mark.long
@given(st.binary(min_size=7, max_size=21))
@settings(max_examples=100_000, suppress_health_check=list(HealthCheck), database=None)
def test_a_hundred_thousand_strings_in_any_chunks_get_one_verdict(data):
    check(*decode(data))
