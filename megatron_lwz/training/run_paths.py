"""Where a run keeps its things. Apart from the run folder, so that processes that do not train need no Megatron."""

from __future__ import annotations

from pathlib import Path

from megatron_lwz.config import Config


class RunPaths:
    """Where the things of one run lie."""

    def __init__(self, config: Config) -> None:
        self.root = Path(config.run.dir)
        self.config = self.root / "config.yaml"
        self.checkpoints = self.root / "checkpoints"
        self.metrics = self.root / "metrics.jsonl"
        self.journal = self.root / "journal.sqlite"
        self.weights = self.root / "weights"
        self.hf = self.root / "hf"
