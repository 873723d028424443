"""A pytest plugin for interpreted kernels: Triton's interpreter prepares `triton.language` once, and not at every call.

The interpreter replaces the language's functions by its own at each launch, and looks through all of them again at each
call of a device function (`tl.sum` is one), for milliseconds. In a process whose kernels are all interpreted they can
stay replaced.
"""

from __future__ import annotations

from functools import cache
from types import FunctionType, SimpleNamespace
from typing import Any

from triton.runtime import interpreter


class _Kept:
    """In place of what would undo it."""

    def restore(self) -> None:
        """Leaves the language as it is."""


def _prepare_once(kernel: FunctionType) -> _Kept:
    known = (interpreter.tl, interpreter.tl.core)
    _prepare(tuple(language for language in known if any(value is language for value in kernel.__globals__.values())))
    return _Kept()


_really_prepare = interpreter._patch_lang


@cache
def _prepare(languages: tuple[Any, ...]) -> None:
    _really_prepare(SimpleNamespace(__globals__={language.__name__: language for language in languages}))


interpreter._patch_lang = _prepare_once
