"""Parses server-sent events from byte chunks, which may end anywhere."""

from __future__ import annotations

from megatron_lwz.units import MIB


class EventParser:
    """Parses byte chunks into the data of whole events (the part of the SSE standard that engines use).

    Lines are joined before they are decoded, so a chunk may end inside a UTF-8 character. CR LF and comments are
    accepted.
    """

    def __init__(self, *, max_event_bytes: int = 16 * MIB) -> None:
        self._max = max_event_bytes
        self._line = bytearray()
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[str]:
        """Returns the data of every event that this chunk completes.

        Raises ValueError if an event grows beyond the limit or is not UTF-8.
        """
        events: list[str] = []
        self._line += chunk
        lines: list[bytearray] = []
        if b"\n" in chunk:  # else no line is complete; so a line of many chunks is split only once
            *lines, rest = self._line.split(b"\n")
            self._line = bytearray(rest)
        for line in lines:
            if data := self._take(bytes(line).rstrip(b"\r")):
                events.append(data)
        if self._size + len(self._line) > self._max:
            raise ValueError(f"an event of more than {self._max} bytes")
        return events

    def _take(self, line: bytes) -> str | None:
        if not line:
            event = "\n".join(self._data)
            self._data, self._size = [], 0
            return event
        if line.startswith(b"data:"):
            self._size += len(line)
            if self._size > self._max:
                raise ValueError(f"an event of more than {self._max} bytes")
            self._data.append(line[5:].removeprefix(b" ").decode("utf-8"))
        return None
