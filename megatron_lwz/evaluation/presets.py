"""Sampling settings of each benchmark."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from megatron_lwz.config.sections import RolloutSection


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of responses. `top_k` 0 means no limit."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int

    def as_json(self) -> dict[str, Any]:
        """Returns the settings as a dict, for files and requests."""
        return asdict(self)


_ROLLOUT = RolloutSection()

PRESETS = {
    "writing-bench": Sampling(0.7, 0.8, 20, 16000),
    "longbench-write": Sampling(0.5, 1.0, 0, 32768),
    "hello-bench": Sampling(0.8, 1.0, 0, 16384),
    "longgen-bench": Sampling(0.95, 0.95, 0, 16000),
    "constory": Sampling(0.7, 1.0, 0, 16384),
    "arena-write": Sampling(0.6, 0.95, 0, 15500),
    "longwriter-zero": Sampling(0.6, 0.95, 0, 15500),
    "training": Sampling(_ROLLOUT.temperature, _ROLLOUT.top_p, 0, _ROLLOUT.max_new_tokens),
}
"""Sampling settings by name, with these sources.

writing-bench: its README of 2025-04-29. longbench-write (also for LongWrite-Ruler): its `pred.py`, which names no top-p
or top-k. hello-bench: its README and `run.py`. longgen-bench: its `inference.py` and `run.sh` for Dataset_short.json (32,000
tokens for Dataset_long.json). constory: its `generate.py`, whose system prompt is not sent. longwriter-zero: the model card's
inference code. Arena-Write names no settings, so it uses the same.
"""
