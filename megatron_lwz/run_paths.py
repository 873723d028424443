"""Where a run keeps its files: the one place that names them. Reading it needs neither a config nor Megatron."""

from __future__ import annotations

from pathlib import Path

LATEST, BEST = "latest", "best"
"""Files in a `checkpoints` folder, each the name of a folder in it."""

STEPS = "step_*"
"""What `step_name` gives, as a pattern of file names."""


class RunPaths:
    """The files of the run in the folder `root`. Nothing is created here."""

    def __init__(self, root: Path | str) -> None:
        self.root = root = Path(root)
        self.config = root / "config.yaml"
        """The resolved settings."""
        self.attempts = root / "attempts.jsonl"
        """Every start, with package versions."""

        self.metrics = root / "metrics.jsonl"
        """One object per training step."""
        self.evaluations = root / "evaluation.jsonl"
        """One object per evaluation on held-out prompts."""
        self.summary = root / "summary.json"
        self.tensorboard = root / "tensorboard"
        self.report = root / "report.html"

        self.checkpoints = root / "checkpoints"
        """One folder per checkpoint, see `step_name`."""
        self.latest = self.checkpoints / LATEST
        """Names the newest complete checkpoint."""
        self.best = self.checkpoints / BEST
        """Names the checkpoint that is best on the held-out prompts."""
        self.hf = root / "hf"
        """The trained weights as a Hugging Face folder."""
        self.corpus = root / "corpus"
        """Pretraining on JSONL: its tokens."""
        self.held_out = root / "held_out.jsonl"
        """A reward model's scores of the held-out pairs."""
        self.held_out_summary = root / "held_out.json"
        self.skipped = root / "skipped"
        """The batches of refused steps."""

        self.journal = root / "journal.sqlite"
        self.weights = root / "weights"
        """The newest exports, for the engines."""
        self.pinned = root / "evaluation"
        """Held-out evaluations that have begun, with their weights."""
        self.judge_cache = root / "judge_cache.sqlite"
        """The judge's replies."""
        self.engine_log = root / "engine.log"
        self.evaluation_engine_log = root / "evaluation_engine.log"
        self.reward_model_log = root / "reward_model.log"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step` updates."""
        return self.checkpoints / step_name(step)


def step_name(step: int) -> str:
    """What belongs to the policy after `step` updates is called so; names sort as the steps do."""
    return f"step_{step:08d}"


def step_of(name: str) -> int:
    """The step of a `step_name`. Raises ValueError for any other name."""
    prefix, _, digits = name.partition("_")
    if prefix != "step" or not digits.isdigit():
        raise ValueError(f"no step in {name!r}")
    return int(digits)
