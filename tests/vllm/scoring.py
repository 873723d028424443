"""The trainer's own log-probs of what an engine wrote, by the real `score` command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from megatron_lwz.types import Group, Rollout
from tests.support import stages
from tests.vllm.served_model import MAX_LENGTH


def rollouts_of(groups: Sequence[Group]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group.rollouts]


def score(
    model: Path, folder: Path, prompts: Sequence[Sequence[int]], rollouts: Sequence[Rollout], temperature: float
) -> list[np.ndarray]:
    """Log-probs [response tokens] per rollout in fp32; `folder` takes the files."""
    folder.mkdir(exist_ok=True)
    config, source, target = folder / "config.yaml", folder / "tokens.jsonl", folder / "logprobs.jsonl"
    training = {"precision": "fp32", "tokens_per_micro_batch": MAX_LENGTH}
    config.write_text(yaml.safe_dump({"model": {"hf": str(model)}, "training": training}))
    rows = [
        {"id": str(place), "tokens": [*prompt, *rollout.tokens], "prompt_length": len(prompt)}
        for place, (prompt, rollout) in enumerate(zip(prompts, rollouts, strict=True))
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [str(config), "--input", str(source), "--output", str(target), "--temperature", str(temperature)]
    done = stages.run("score", *arguments)
    assert done.returncode == 0, done.stderr
    return [np.asarray(json.loads(line)["logprobs"]) for line in target.read_text().splitlines()]
