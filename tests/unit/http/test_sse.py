from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_lwz.http.sse import EventParser


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)), min_size=1)), st.data())
def test_events_do_not_depend_on_how_the_network_cuts_bytes(events, data):
    stream = "".join(f"data: {event}\n\n" for event in events).encode()
    parser, got = EventParser(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += parser.feed(stream[:size])
        stream = stream[size:]
    assert got == events


def test_comments_fields_and_line_ends():
    assert EventParser().feed(b": hi\r\nid: 3\r\ndata: a\r\ndata:b\r\n\r\n\n\ndata:  c\n\n") == ["a\nb", " c"]


def test_endless_events_are_refused():
    parser = EventParser(max_event_bytes=100)
    with pytest.raises(ValueError, match="100 bytes"):
        for _ in range(20):
            parser.feed(b"data: 0123456789")
    parser = EventParser(max_event_bytes=100)
    with pytest.raises(ValueError, match="100 bytes"):
        for _ in range(20):
            parser.feed(b"data: 0123456789\n")
