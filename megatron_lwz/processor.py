"""What this machine's CPU can do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_INFO = Path("/proc/cpuinfo")
_FAST_BF16 = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
"""Instruction sets that multiply bf16 numbers, as Linux names them on x86-64 and on Arm."""


@cache
def instruction_sets() -> frozenset[str]:
    """Returns the names that Linux gives to the CPU's instruction sets; empty where it does not say."""
    try:
        lines = _INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    said = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(said.partition(":")[2].split())


def has_fast_bf16() -> bool:
    """Returns whether the CPU multiplies bf16 numbers itself. Others emulate it, several times slower than fp32."""
    return not _FAST_BF16.isdisjoint(instruction_sets())
