"""Published figures, shown beside our runs for orientation only: their judges, era and prompts differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A row of the paper's tables (arXiv 2506.18841). None if the paper gives no value."""

    model: str
    writing_bench: float | None
    arena_elo: float | None


WRITING_BENCH_NOTE = (
    "1 to 10; era 2025-03 most likely (derived from the dates, not stated); which judge is not known here"
)
ARENA_NOTE = "judge Qwen2.5-72B by one write-up; judge prompt, Elo settings and anchor are not published"

PAPER: Sequence[Published] = (
    Published("LongWriter-Zero 32B", 8.69, 1447),
    Published("without continual pretraining (Base-think)", 8.12, 1221),
    Published("without continual pretraining and thinking (Base-nothink)", 8.04, 668),
    Published("SFT from the base model", None, 964),
    Published("SFT from the continually pretrained model", None, 971),
    Published("Qwen3-235B-A22B", 8.68, 1343),
    Published("Claude-Sonnet-4", 8.60, 1185),
    Published("DeepSeek-R1", 8.55, 1343),
    Published("GPT-4o-2024-11-20", 8.16, 947),
    Published("LongWriter-8B (SFT)", 7.91, 457),
)
