"""Paths of a run's files, named only in this module. It needs neither a config nor Megatron."""

from __future__ import annotations

from pathlib import Path

LATEST, BEST = "latest", "best"
"""Files in a `checkpoints` folder. Each holds the name of a checkpoint folder."""

STEPS = "step_" + 8 * "[0-9]"
"""What `step_name` gives, as a pattern of file names."""


class RunPaths:
    """The paths of the run in the folder `root`. Creates no file."""

    def __init__(self, root: Path | str) -> None:  # noqa: PLR0915 (a list of names)
        self.root = root = Path(root)
        self.config = root / "config.yaml"
        """The resolved settings."""
        self.lock = root / "writer.lock"
        """Held by the process that writes the run. Names it meanwhile; empty otherwise."""
        self.attempts = root / "attempts.jsonl"
        """One object per start of the run: what changed since the last one, package versions."""

        self.metrics = root / "metrics.jsonl"
        """One object per training step."""
        self.evaluations = root / "evaluation.jsonl"
        """One object per evaluation on held-out prompts."""
        self.summary = root / "summary.json"
        self.tensorboard = root / "tensorboard"
        self.trackers = root / "trackers"
        """What trackers keep of this run (`logging.wandb`, `.trackio`, `.mlflow`): its id in each, files written offline."""
        self.report = root / "report.html"
        self.notes = root / "notes.jsonl"
        """What a reader noted about rollouts (`lwz ui`)."""

        self.checkpoints = root / "checkpoints"
        """One folder per checkpoint, named by `step_name`."""
        self.latest = self.checkpoints / LATEST
        """The name of the newest complete checkpoint."""
        self.best = self.checkpoints / BEST
        """The name of the checkpoint that is best on the held-out prompts."""
        self.hf = root / "hf"
        """The trained weights as a Hugging Face folder."""
        self.corpus = root / "corpus"
        """The tokens of a JSONL corpus for pretraining."""
        self.new_corpus = root / ".corpus.tmp"
        """The same, of a start that has not read and checked everything yet."""
        self.held_out = root / "held_out.jsonl"
        """A reward model's scores of the held-out pairs."""
        self.held_out_summary = root / "held_out.json"
        self.skipped = root / "skipped"
        """The batches of refused steps."""

        self.journal = root / "journal.sqlite"
        self.weights = root / "weights"
        """The newest weight exports, for the engines."""
        self.pinned = root / "evaluation"
        """Held-out evaluations that have begun, with their weights."""
        self.judge_cache = root / "judge_cache.sqlite"
        """Cache of the judge's replies."""
        self.engine_log = root / "engine.log"
        self.evaluation_engine_log = root / "evaluation_engine.log"
        self.reward_model_log = root / "reward_model.log"
        self.continuation_model_log = root / "continuation_model.log"
        self.profile = root / "profile"
        """What `--profile` recorded: traces and their summaries."""

    def checkpoint(self, step: int) -> Path:
        """Returns the folder of the checkpoint after `step` updates."""
        return self.checkpoints / step_name(step)

    def token_values_of(self, step: int) -> Path:
        """Returns the folder of what the trainer computed for single tokens in a step (`logging.token_values`)."""
        return self.root / "token_values" / step_name(step)

    def profile_trace(self, steps: str) -> Path:
        """Returns the trace of recorded steps, e.g. `3-5`, for ui.perfetto.dev."""
        return self.profile / f"steps_{steps}.json.gz"

    def profile_summary(self, steps: str) -> Path:
        """Returns the file with the figures of the trace."""
        return self.profile / f"steps_{steps}.summary.json"

    def profile_summaries(self) -> list[Path]:
        """Returns the summaries that exist, by name."""
        return sorted(self.profile.glob("steps_*.summary.json"))

    def profile_part(self, rank: int) -> Path:
        """Returns the file of a rank's part, until the trace is whole."""
        return self.profile / f".rank_{rank}.part"

    def profile_raw(self, rank: int) -> Path:
        """Returns the file that torch's profiler writes on a rank, until its part is written."""
        return self.profile / f".rank_{rank}.torch.json"


def with_config(folder: Path) -> Path | None:
    """Returns the folder with the config.yaml of a checkpoint: `folder`, or the run that holds it. None without one."""
    places = (folder, *list(folder.resolve().parents)[:2])  # RUN/checkpoints/step_…
    return next((place for place in places if RunPaths(place).config.is_file()), None)


def step_name(step: int) -> str:
    """Returns the name of files and folders of the policy after `step` updates. Names sort in the order of steps."""
    return f"step_{step:08d}"


def step_of(name: str) -> int:
    """Returns the step of a name made by `step_name`. Raises ValueError for any other name."""
    prefix, _, digits = name.partition("_")
    if prefix != "step" or not digits.isdigit():
        raise ValueError(f"no step in {name!r}")
    return int(digits)


def free_ending(path: Path, ending: str) -> str:
    """Returns `ending`, or `ending` and a number from 2 on: the first with which the name of `path` is not taken."""
    number, found = 1, ending
    while path.with_name(path.name + found).exists():
        number += 1
        found = f"{ending}.{number}"
    return found
