"""The run folder: the place of everything a run writes, and the decision whether the run starts or resumes."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from megatron_lwz.config import Config, save_config
from megatron_lwz.distributed import groups
from megatron_lwz.errors import ConfigError
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.checkpoint import latest


class RunFolder(RunPaths):
    """The folder of a run that trains. `resume` is the checkpoint from which it continues, None for a fresh start."""

    def __init__(self, config: Config) -> None:
        """Decides about resuming, then rank 0 creates the folder and writes the resolved `config.yaml`. Collective.

        `run.resume`: `auto` resumes from the newest checkpoint if there is one, `must` fails without one, `never`
        refuses a folder that a run already wrote to. Raises ConfigError, on every rank alike.
        """
        super().__init__(config.run.dir)
        self.resume = self._checkpoint(config)
        dist.barrier()  # all ranks must have looked for a checkpoint before rank 0 writes
        if groups.is_rank_zero():
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            save_config(config, self.config)
        dist.barrier()

    def _checkpoint(self, config: Config) -> Path | None:
        found = latest(self.root)
        if config.run.resume == "must" and found is None:
            raise ConfigError("run.resume", "must", f"no checkpoint under {self.checkpoints}: start with resume: auto")
        used = [path for path in (self.metrics, self.journal, self.latest) if path.exists()]
        if config.run.resume == "never" and used:
            raise ConfigError("run.resume", "never", f"{used[0]} exists: choose another run.dir or resume: auto")
        return None if config.run.resume == "never" else found


def due(step: int, interval: int, config: Config) -> bool:
    """Whether an action that runs every `interval` steps (0: never) and after the last step is due after `step`."""
    return step == config.training.steps or (interval > 0 and step % interval == 0)
