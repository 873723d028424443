"""Units of memory and of files, in bytes."""

from __future__ import annotations

KIB, MIB, GIB = 2**10, 2**20, 2**30
