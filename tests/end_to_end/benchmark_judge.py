"""One scripted judge for all three benchmarks."""

from __future__ import annotations

import hashlib
import json
import math

DIMENSIONS = ("Relevance", "Accuracy", "Coherence", "Clarity", "Breadth and Depth", "Reading Experience")
BASELINE = "A plain text."
STRENGTH, BIAS = -0.7, 0.5
"""Of the policy over the baseline, and of the first place over the second, as log-odds."""


def scripted(prompt: str, _: int) -> str:
    """Ratings of 4, scores of 8, and of a pair the planted preference; the same question gets the same answer."""
    if "winner" not in prompt:
        return json.dumps(dict.fromkeys(DIMENSIONS, 4) | {"score": 8, "reason": "well"})
    baseline_first = prompt.index(BASELINE) < prompt.index("The second one wrote:")
    odds = (-STRENGTH if baseline_first else STRENGTH) + BIAS
    luck = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") / 2**64
    return json.dumps({"reason": "…", "winner": "first" if luck < 1 / (1 + math.exp(-odds)) else "second"})
