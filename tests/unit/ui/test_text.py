import pytest

from megatron_lwz.report.blocks import LONGEST, chunks, headings, paragraphs, prose
from megatron_lwz.report.text import clip, html, shown
from tests.support.reading_run import HOSTILE, chinese, english


def test_hidden_characters_appear_by_their_codes_and_others_stay():
    assert shown("a\u202eb\x00\x1b[1m").text == "a⟦U+202E⟧b⟦U+0000⟧⟦U+001B⟧[1m"
    for char in "\x7f\x9b\u200b\u200f\u2028\u2066\ufeff\ud800\U000e0041":
        assert shown(char).text == f"⟦U+{ord(char):04X}⟧"
    for text in ("中文，“引号”\n\t", "عربي עברית", "e\u0301 👩\u200d🚀"):
        assert shown(text).text == text
    assert html("<a href='x'>\u202e") == "&lt;a href=&#x27;x&#x27;&gt;⟦U+202E⟧"


def test_places_of_the_original_are_found_in_what_is_shown():
    text = "a\x00b\r\nc\u202ed\r"
    seen = shown(text)
    assert seen.text == "a⟦U+0000⟧b\nc⟦U+202E⟧d⟦U+000D⟧"
    for place, char in enumerate(text):
        if char in "abcd\n":
            assert seen.text[seen.place(place)] == char
    assert seen.place(len(text)) == len(seen.text)


@pytest.mark.parametrize(
    "text", [english(300), chinese(500), HOSTILE * 40, "x" * 9000, "句" * 9000, "\n\n a \n\n\nb\n", ""]
)
def test_paragraphs_hold_every_character_but_line_ends_and_none_is_long(text):
    text = shown(text).text
    found = list(paragraphs(text))
    assert [p for chunk in chunks(text) for p in chunk] == found
    assert all(0 < p.end - p.start <= LONGEST for p in found)
    covered = {place for p in found for place in range(p.start, p.end)}
    assert all(char.isspace() for place, char in enumerate(text) if place not in covered)
    assert [p.start for p in found] == sorted(p.start for p in found)
    body = prose(text, 100)
    assert body.count("<p ") == len(found) and "<script" not in body and "<img" not in body


def test_headings_are_found_with_their_places():
    assert headings("## One\ntext\n### Two\n#no", 5) == [(5, 2, "One"), (17, 3, "Two")]


def test_clip_gives_one_short_line():
    assert clip("a\n b", 9) == "a b"
    assert clip("word " * 50, 10) == "word word…"
