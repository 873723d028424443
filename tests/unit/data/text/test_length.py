import re

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.data.text.length import UnitCounter, count_units

ALPHABET = "ab Z9_-'.\n中文，é\u4dff\u9fff\ua000\u0301"


def test_counts_as_longbench_write_does():
    assert count_units("Don't count x1, foo_bar or café; do count A-B.") == 8  # Don t count or do count A B
    assert count_units("写一篇about春天的essay。") == 6  # no word boundary between a letter and a CJK character
    assert count_units("写一篇 about 春天的 essay。") == 8
    assert count_units("") == count_units(" \n—…123") == 0


def test_characters_are_all_but_white_space():
    assert count_units(" a b\n中，c ", "characters") == 5


@given(st.text(alphabet=ALPHABET, max_size=60), st.data())
@settings(max_examples=300)
def test_incremental_count_equals_the_whole_text_count_for_any_chunking(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for unit in ("words", "characters"):
        counter = UnitCounter(unit)
        fed = ""
        for piece in pieces:
            fed += piece
            assert counter.feed(piece) == counter.count == count_units(fed, unit)


@given(st.text(max_size=80))
@settings(max_examples=200)
def test_words_are_the_published_expression(text):
    cjk = sum("\u4e00" <= c <= "\u9fff" for c in text)
    assert count_units(text) == cjk + len(re.findall(r"\b[a-zA-Z]+\b", text))
    counter = UnitCounter()
    for character in text:
        counter.feed(character)
    assert counter.count == count_units(text)
