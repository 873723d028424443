"""Worker side of test_dpo: steps and held-out rewards of one tiny policy under several layouts, and a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_lwz.config import load_config
from megatron_lwz.distributed import launch
from megatron_lwz.metrics import read_metrics
from megatron_lwz.models.hf import checksum_folder, export_policy
from megatron_lwz.training import dpo, pairs
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.step import train_step

STEPS, PAIRS = 2, 5


def layouts(folder: str, layouts: dict[str, list[str]]) -> dict[str, Any]:
    """Losses, gradient norms, metrics and held-out rewards of a few steps under each layout, and an export after them."""
    found: dict[str, Any] = {}
    for name, overrides in layouts.items():
        config = load_config(Path(folder, "config.yaml"), [f"run.dir={folder}/{name}", *overrides])
        config, task = dpo.prepare(config)
        state = build_train_state(config)
        task.begin(state)
        start = task.evaluate(state)
        cursor, rows = 0, []
        for _ in range(STEPS):
            batch, cursor = task.take(cursor, PAIRS)
            result = train_step(state, task.micro_batches(batch, config), task.objective(batch), batch.denominator)
            state.step += 1
            rows.append({"loss": result.loss, "grad_norm": result.grad_norm, **result.metrics})
        end = task.evaluate(state)
        rewards = [[pair.chosen, pair.rejected] for pair in task.scored]
        export_policy(state.policies, Path(folder, name, "hf"), config_files_from=config.tokenizer_dir())
        found[name] = {"steps": rows, "start": start, "end": end, "rewards": rewards}
    return found


def resumed(folder: str) -> dict[str, Any]:
    """The weights and metrics of a whole run, and of one that was stopped after half of its steps and resumed."""
    found: dict[str, Any] = {}
    for name, parts in (("whole", [4]), ("halves", [2, 4])):
        for steps in parts:
            given = [f"run.dir={folder}/{name}", f"training.steps={steps}", "checkpoint.interval=2"]
            root = pairs.train("dpo", *dpo.prepare(load_config(Path(folder, "config.yaml"), given))).root
            launch.end_run()  # as the end of its process would
        rows = [row for row in read_metrics(root / "metrics.jsonl") if row["step"] > 2]
        times = ("seconds", "per_second", "mfu", "flops")
        kept = [{key: value for key, value in row.items() if not any(t in key for t in times)} for row in rows]
        found[name] = {
            "rows": kept,
            "weights": checksum_folder(root / "hf"),
            "held_out": (root / "held_out.jsonl").read_text(),
            "evaluations": [row["step"] for row in read_metrics(root / "evaluation.jsonl")],
            "files": sorted(path.name for path in root.iterdir()),
        }
    return found
