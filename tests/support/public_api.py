"""The public Python API as lines of text; those of tests/data/public_api.txt are promised. `python -m tests.support.public_api` shows all."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from enum import Enum
from typing import Any

from pydantic import BaseModel

import megatron_lwz


def render() -> str:
    """One line per name, and per public part of a class."""
    names = [name for name in megatron_lwz.__all__ if name != "__version__"]
    return "".join(f"{line}\n" for name in names for line in _lines(name, getattr(megatron_lwz, name)))


def _lines(name: str, found: Any) -> Iterator[str]:
    if not inspect.isclass(found):
        yield f"{name}{inspect.signature(found)}"
    elif issubclass(found, Enum):
        yield f"{name}: {', '.join(f'{member.name} = {member.value}' for member in found)}"
    elif issubclass(found, BaseModel):
        yield f"{name}: {', '.join(found.model_fields)}"
    else:
        yield f"{name}{inspect.signature(found)}"
        fields = {field.name for field in dataclasses.fields(found)} if dataclasses.is_dataclass(found) else set()
        for part, value in sorted(vars(found).items()):
            if part.startswith("_") or part in fields:
                continue
            yield f"{name}.{part}{inspect.signature(value) if inspect.isfunction(value) else ''}"


if __name__ == "__main__":
    print(render(), end="")
