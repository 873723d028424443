"""Incremental text equals decoding everything at once, whatever the bytes; stop strings are found where they begin."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.rollout.engine.text import Detokenizer, StopFinder


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def pieces(ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(decode)
    return [*(detokenizer.feed(token) for token in ids), detokenizer.finish()]


@settings(max_examples=200)
@given(st.binary(max_size=40))
def test_pieces_of_any_bytes_join_to_the_whole_text(data: bytes) -> None:
    assert "".join(pieces(data)) == decode(data)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_many_tokens_at_a_time_give_the_same_text(data: bytes, sizes: list[int]) -> None:
    detokenizer, text, start = Detokenizer(decode), "", 0
    while start < len(data):
        size = sizes[start % len(sizes)]
        text += detokenizer.feed(*data[start : start + size])
        start += size
        assert decode(data[:start]).startswith(text)
    assert text + detokenizer.finish() == decode(data)


def test_bytes_that_never_become_a_character_do_not_lengthen_the_window() -> None:
    longest = 0

    def watched(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    detokenizer = Detokenizer(watched)
    data = b"\x80" * 500 + "中".encode() * 3
    text = "".join(detokenizer.feed(token) for token in data)
    assert text + detokenizer.finish() == decode(data) and longest <= 40


@settings(max_examples=100)
@given(st.text(max_size=30))
def test_valid_text_never_shows_a_broken_character(text: str) -> None:
    data = text.encode()
    assert all("�" not in piece or "�" in text for piece in pieces(data))


def test_characters_come_as_soon_as_they_are_complete() -> None:
    assert pieces("a中b".encode()) == ["a", "", "", "中", "b", ""]


@settings(max_examples=200)
@given(
    st.lists(st.text("ab<>/", max_size=4), max_size=12), st.lists(st.text("ab</", min_size=1, max_size=4), max_size=3)
)
def test_stop_is_found_as_in_the_whole_text(parts: list[str], stops: list[str]) -> None:
    finder, out, stop = StopFinder(stops), "", None
    for part in parts:
        safe, stop = finder.feed(part)
        out += safe
        if stop is not None:
            break
    whole = "".join(parts)
    if stop is None:
        assert not any(s in whole for s in stops)
        assert out + finder.finish() == whole
    else:
        assert stop in stops and whole.startswith(out + stop)
        assert not any(s in (out + stop)[:-1] for s in stops if len(s) >= len(stop))


def test_text_that_may_begin_a_stop_is_held_back() -> None:
    finder = StopFinder(["</answer>"])
    assert finder.feed("text</ans") == ("text", None)
    assert finder.feed("wer") == ("", None)
    assert finder.feed("!") == ("</answer!", None)
    assert finder.feed("</answer> more") == ("", "</answer>")
