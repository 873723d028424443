"""Makes inputs from examples: changes bytes, or the values of a JSON document. The same seed gives the same inputs."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

_NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"-0.0", b"2147483648", b"9223372036854775808", b"1" * 30, b"1" * 5000)
_NOISE = (
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"\xe2\x80\xae", b"\x1b[2J", b"\r\n", b"\xe2\x80\xa8",
    b"[" * 120, b'{"a":' * 120, b"<|im_start|>", b"\xf0\x9f\x98\x80", b"\xe5\x86\x99", b" " * 300,
)  # fmt: skip
_STRINGS = (
    "", " ", "x", "写一篇500字的文章", "<think>a</think> <answer>b</answer>", "<|endoftext|>", "\x00", "\x1b[31m", "\u202e",
    "1" * 400, "é" * 50, "[{", "nan", "null", '[{"role": "user", "content": "x"}]', "\ud83d\ude00", "Human: a\n\nAssistant: b",
)  # fmt: skip
_SCALARS = (None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, 500.0)


def mutate_bytes(rng: random.Random, examples: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Returns an example after one to eight changes."""
    data = bytearray(rng.choice(examples))
    for _ in range(rng.choice((1, 1, 2, 3, 5, 8))):
        at = rng.randint(0, len(data))
        stop = min(len(data), at + rng.choice((1, 1, 2, 4, 16, 200)))
        match rng.randrange(9):
            case 0 if data and at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.randrange(256)
            case 2:
                del data[at:stop]
            case 3:
                data[at:at] = data[at:stop] * rng.choice((1, 2, 60))
            case 4:
                data[at:at] = rng.choice(_NOISE)
            case 5:
                data[at:stop] = rng.choice(_NUMBERS)
            case 6 if words:
                data[at:stop] = rng.choice(words)
            case 7:
                del data[at:]
            case _:
                other = rng.choice(examples)
                cut = rng.randint(0, len(other))
                data[at:stop] = other[cut : cut + rng.choice((1, 8, 64, 1000))]
    return bytes(data[: 1 << 16])


def mutate_json(rng: random.Random, examples: Sequence[Any], keys: Sequence[str]) -> Any:
    """Returns an example in which one to five values, or keys, are others."""
    value = copy.deepcopy(rng.choice(examples))
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        places = list(_places(value))
        if not places:
            return any_value(rng, keys)
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(keys)] = holder.pop(key)
            case 2 if isinstance(holder, dict):
                holder[rng.choice(keys)] = any_value(rng, keys)
            case 3 if isinstance(holder, list):
                holder.insert(rng.randint(0, len(holder)), copy.deepcopy(holder[key]))
            case 4:
                holder[key] = rng.choice(_STRINGS)
            case _:
                holder[key] = any_value(rng, keys)
    return value


def any_value(rng: random.Random, keys: Sequence[str], depth: int = 0) -> Any:
    """Returns a JSON value of a few levels."""
    kind = rng.randrange(10 if depth < 4 else 6)
    if kind < 3:
        return rng.choice(_SCALARS)
    if kind < 6:
        return rng.choice(_STRINGS)
    if kind < 8:
        return [any_value(rng, keys, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(keys): any_value(rng, keys, depth + 1) for _ in range(rng.randrange(5))}


def from_bytes(examples: Sequence[bytes | str], words: Sequence[str] = ()) -> Callable[[random.Random], bytes]:
    """Returns a maker of inputs that changes bytes."""
    seeds = [text.encode() if isinstance(text, str) else text for text in examples]
    tokens = [word.encode() for word in words]
    return lambda rng: mutate_bytes(rng, seeds, tokens)


def from_json(examples: Sequence[Any], keys: Sequence[str]) -> Callable[[random.Random], bytes]:
    """Returns a maker of JSON documents. One in eight is then changed as bytes, so that it may be no JSON."""

    def make(rng: random.Random) -> bytes:
        written = json.dumps(mutate_json(rng, examples, keys)).encode("utf-8", "surrogatepass")
        return written if rng.randrange(8) else mutate_bytes(rng, [written], [key.encode() for key in keys])

    return make


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        found += [(value, key) for key in value]
        found += [place for entry in value.values() for place in _places(entry)]
    elif isinstance(value, list):
        found += [(value, place) for place in range(len(value))]
        found += [place for entry in value for place in _places(entry)]
    return found
