"""What this machine's CPU can do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_INFO = Path("/proc/cpuinfo")
_FAST_BF16 = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
"""Instruction sets that multiply bf16 numbers, as Linux names them on x86-64 and on Arm."""


@cache
def _said() -> dict[str, str]:
    """Returns what Linux says of the first core; empty where it does not say."""
    try:
        text = _INFO.read_text(encoding="utf-8")
    except OSError:
        return {}
    rows = (line.partition(":") for line in reversed(text.splitlines()))
    return {name.strip(): value.strip() for name, _, value in rows}


def instruction_sets() -> frozenset[str]:
    """Returns the names that Linux gives to the CPU's instruction sets; empty where it does not say."""
    return frozenset((_said().get("flags") or _said().get("Features", "")).split())


def vendor() -> str:
    """Returns the maker of an x86-64 CPU as it names itself, e.g. GenuineIntel; empty where Linux does not say."""
    return _said().get("vendor_id", "")


def family() -> str:
    """Returns its family, a number; empty where Linux does not say."""
    return _said().get("cpu family", "")


def has_fast_bf16() -> bool:
    """Returns whether the CPU multiplies bf16 numbers itself. Others emulate it, several times slower than fp32."""
    return not _FAST_BF16.isdisjoint(instruction_sets())
