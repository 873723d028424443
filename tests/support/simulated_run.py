"""The folder of a GRPO run whose law is known: simulated, and written as a run writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_lwz.config import save_config, validate
from megatron_lwz.metrics import MetricsWriter
from megatron_lwz.planner.simulation.engine import Decoding
from megatron_lwz.planner.simulation.lengths import Drawn, quantile_of
from megatron_lwz.planner.simulation.pool import Engines
from megatron_lwz.planner.simulation.run import Record, Simulation
from megatron_lwz.planner.simulation.setting import Setting, Trainer, WeightSync
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.run_paths import RunPaths
from tests.support import journal_groups

LAW = Drawn(quantile_of("lognormal:60:0.6"), 400, 2, 2, seed=3)
KNOWN = Setting(
    steps=12,
    batch=3,
    engines=Engines(1, 32, Decoding(0.02, 0.001)),
    trainer=Trainer(2e-3, 0.5),
    sync=WeightSync(0.2, 0.1),
    rewards=0.4,
)


def write_run(root: Path, setting: Setting, *, steps: int | None = None, **rollout: Any) -> Record:
    """The folder of a run with this setting, up to `steps`. What later steps would train on is unfinished."""
    record = Simulation(setting, LAW).run()
    paths = RunPaths(root)
    tree = {
        "run": {"dir": str(root)},
        "training": {"steps": setting.steps, "prompts_per_step": setting.batch},
        "grpo": {"group_size": LAW.size},
        "rollout": {"max_staleness": setting.staleness, "concurrency": 32, "max_new_tokens": 400, **rollout},
    }
    root.mkdir()
    save_config(validate(tree), paths.config)
    done = record.steps[:steps]
    with MetricsWriter(root, tensorboard=False) as writer:
        for number, step in enumerate(done, 1):
            seconds = {"rollout": step.waited, "update": step.trained, "weight_sync": step.synced}
            row = {f"seconds/{name}": value for name, value in seconds.items()}
            writer.write(number, row | {"rollout/engines_up": 1.0, "rollout/concurrency_limit": 32.0})
    used = {
        group: (number, at)
        for number, step in enumerate(record.steps, 1)
        for group, at in zip(step.groups, step.admitted, strict=True)
    }
    journal = Journal(paths.journal)
    for number, lengths in record.admitted.items():
        step, admitted = used[number]
        if admitted > len(done) + 1:
            continue
        group = journal_groups.group(number, LAW.size, admitted)
        journal.admit(group)
        for draft, length in zip(group.drafts, lengths.responses, strict=True):
            trained = step <= len(done)
            journal_groups.write(journal, draft, (7,) * (length if trained else 3))
            if trained:
                journal_groups.end(journal, draft)
        if step <= len(done):
            journal.consume([number], step)
    journal.close()
    return record
