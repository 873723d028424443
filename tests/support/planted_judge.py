"""A judge of pairs with known preferences: what Arena-Write must find again."""

from __future__ import annotations

import hashlib
import json
import math
import re

STRENGTHS = {"baseline": 0.0, "strong": 1.2, "weak": -0.9}
BIAS = 0.6


def planted(prompt: str, _: int) -> str:
    """A judge with planted preferences and a liking for the first place; the same question gets the same answer."""
    first, second = re.findall(r"^(\w+) writes \d+$", prompt, re.MULTILINE)
    p = 1 / (1 + math.exp(-(STRENGTHS[first] - STRENGTHS[second] + BIAS)))
    luck = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") / 2**64
    return json.dumps({"reason": "…", "winner": "first" if luck < p else "second"})
