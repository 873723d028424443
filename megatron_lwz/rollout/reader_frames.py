"""What trainer and stream reader say to each other over a pipe: frames of a stream's number, a kind and a payload."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import Any

from megatron_lwz.types import TokenDelta, WeightVersion

HEADER = Struct("<IBI")
"""Number of the stream, kind, bytes of the payload."""
COUNT = Struct("<I")
GATHER_SECONDS = 0.1
"""Longest time that the reader holds tokens back for those of other streams."""
UNNAMED = WeightVersion(-1)
"""Marks tokens of an engine that does not say which weights wrote them."""


class Kind(IntEnum):
    """What a frame is about."""

    OPEN = 0
    """To the reader, JSON: begin this request."""
    CANCEL = 1
    """To the reader, empty: nobody listens any more."""
    DELTA = 2
    """From the reader: tokens, log-probs and the name of their weights (`pack_delta`)."""
    END = 3
    """From the reader, JSON: reason and stop."""
    FAILED = 4
    """From the reader, JSON: failure class and advice."""


class FrameParser:
    """Feeds on bytes, gives whole frames."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, Kind, bytes]]:
        """(number, kind, payload) of every frame that these bytes complete."""
        self._held += data
        place = 0
        while len(self._held) - place >= HEADER.size:
            number, kind, size = HEADER.unpack_from(self._held, place)
            end = place + HEADER.size + size
            if len(self._held) < end:
                break
            yield number, Kind(kind), bytes(self._held[place + HEADER.size : end])
            place = end
        del self._held[:place]


def frame(number: int, kind: Kind, payload: bytes = b"") -> bytes:
    """One frame."""
    return HEADER.pack(number, kind, len(payload)) + payload


def message(number: int, kind: Kind, content: Any) -> bytes:
    """A frame that carries JSON."""
    return frame(number, kind, json.dumps(content).encode())


def pack_delta(delta: TokenDelta) -> bytes:
    """Count, ids (int64), log-probs (fp32), then the version's text, empty where the engine names none."""
    name = "" if delta.version == UNNAMED else str(delta.version)
    ids, logprobs = array("q", delta.tokens).tobytes(), array("f", delta.logprobs).tobytes()
    return COUNT.pack(len(delta.tokens)) + ids + logprobs + name.encode()


def unpack_delta(payload: bytes) -> tuple[tuple[int, ...], tuple[float, ...], str]:
    """Inverse of `pack_delta`: ids, log-probs, the version's text."""
    (count,) = COUNT.unpack_from(payload)
    middle = COUNT.size + 8 * count
    end = middle + 4 * count
    ids, logprobs = array("q", payload[COUNT.size : middle]), array("f", payload[middle:end])
    return tuple(ids), tuple(logprobs), payload[end:].decode()
