"""Decodes JSON and YAML that somebody else wrote. Deep nesting is refused before a decoder recurses into it.

A decoder that runs into Python's recursion limit raises RecursionError, and so does whatever the garbage collector
finalizes at that moment, which has nothing to do with the text.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

MAX_DEPTH = 100
"""Deepest nesting of JSON and YAML. It leaves room for all code that walks a value by recursion."""

_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{\]}]', re.DOTALL)
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

OTHER_SHAPE = (LookupError, TypeError, AttributeError, ValueError, OverflowError)
"""Exceptions that decoding JSON and reading it can raise, when it has another shape than the one agreed on."""


class NestedTooDeeply(ValueError):
    """More than MAX_DEPTH objects and lists stand inside each other."""

    def __init__(self) -> None:
        super().__init__(f"nested too deeply: at most {MAX_DEPTH} levels")


def decode_json(data: str | bytes) -> Any:
    """Returns the value of a JSON text. Raises ValueError: NestedTooDeeply, or that of `json.loads`."""
    text = data if isinstance(data, str) else data.decode(json.detect_encoding(data), "surrogatepass")
    if text.count("[") + text.count("{") > MAX_DEPTH:
        refuse_deep_json(text)
    return json.loads(text)


def refuse_deep_json(text: str, start: int = 0) -> None:
    """Raises NestedTooDeeply for the value that begins at `start`. The text may be broken, and go on after the value."""
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text, start):
        mark = found.group()
        if mark in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise NestedTooDeeply
        elif mark in ("]", "}"):
            depth -= 1
            if depth <= 0:
                return


def decode_yaml(text: str) -> Any:
    """Returns the value of a YAML text. Raises ValueError (NestedTooDeeply; a date or number that is none) or YAMLError."""
    refuse_deep_yaml(text)
    return yaml.safe_load(text)


def refuse_deep_yaml(text: str) -> None:
    """Raises NestedTooDeeply. Other faults of the text are left to the decoder."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_YAML_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise NestedTooDeeply
    except yaml.YAMLError:
        return
