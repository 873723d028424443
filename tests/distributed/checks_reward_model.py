"""Worker side of test_reward_model: steps and scores of one tiny reward model under several layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_lwz.config import load_config
from megatron_lwz.metrics import read_metrics
from megatron_lwz.models.hf import checksum_folder, export_policy
from megatron_lwz.training import pairs, reward_model
from megatron_lwz.training.checkpoint import load_model
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.step import train_step

STEPS, PAIRS = 3, 9


def layouts(folder: str, layouts: dict[str, list[str]]) -> dict[str, Any]:
    """Losses, gradient norms, metrics and held-out scores of a few steps under each layout, and the first export."""
    found: dict[str, Any] = {}
    for name, overrides in layouts.items():
        config = load_config(Path(folder, "config.yaml"), [f"run.dir={folder}/{name}", *overrides])
        config, task = reward_model.prepare(config)
        state = build_train_state(config)
        start = [[pair.chosen, pair.rejected] for pair in reward_model.score_pairs(state, task.held_out)]
        cursor, rows = 0, []
        for _ in range(STEPS):
            batch, cursor = task.take(cursor, PAIRS)
            result = train_step(state, task.micro_batches(batch, config), task.objective(batch), batch.denominator)
            state.step += 1
            rows.append({"loss": result.loss, "grad_norm": result.grad_norm, **result.metrics})
        end = [[pair.chosen, pair.rejected] for pair in reward_model.score_pairs(state, task.held_out)]
        export_policy(state.policies, Path(folder, name, "hf"), config_files_from=config.tokenizer_dir())
        found[name] = {"steps": rows, "start": start, "end": end}
    return found


def run_and_resume(folder: str, layout: list[str]) -> dict[str, Any]:
    """A whole run of the stage on two ranks; its checkpoint read under another layout."""
    config = load_config(Path(folder, "config.yaml"), [f"run.dir={folder}/run", "checkpoint.interval=4", *layout])
    root = pairs.train("reward_model", *reward_model.prepare(config)).root
    other = load_config(root, ["parallel.tensor=1", "parallel.pipeline=2"])
    other, _ = reward_model.prepare(other)
    state = build_train_state(other)
    load_model(state.policies, root)
    again = Path(folder, "again")
    export_policy(state.policies, again, config_files_from=other.tokenizer_dir())
    return {
        "files": sorted(path.name for path in root.iterdir()),
        "rows": len(read_metrics(root / "metrics.jsonl")),
        "evaluations": list(read_metrics(root / "evaluation.jsonl")),
        "checksums": [checksum_folder(root / "hf"), checksum_folder(again)],
    }


def two_ranks(folder: str, layouts_of_two: dict[str, list[str]], layout: list[str]) -> dict[str, Any]:
    """Everything on two ranks in one launch."""
    return layouts(folder, layouts_of_two) | {"run": run_and_resume(folder, layout)}
