"""Either end of a checkpoint's way from one stack to another.

`python -m tests.stacks.exchange write|read FOLDER` trains a tiny model, in fp32 and in bf16. `write` saves after two
steps; `read` starts from that checkpoint. Both print the release of Megatron-Core and what the next two steps gave.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from megatron_lwz.config import Config, validate
from megatron_lwz.distributed import launch, megatron_version
from megatron_lwz.training.batching import make_micro_batches
from megatron_lwz.training.checkpoint import latest, load_checkpoint
from megatron_lwz.training.checkpoint_saver import CheckpointSaver
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import train_step
from megatron_lwz.types import MicroBatch, SequenceBatch

VOCABULARY = 101  # not divisible by anything: padded rows must not count
MODEL = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}
PRECISIONS = ("fp32", "bf16")
STEPS = 2  # before the checkpoint, and again after it


def main(action: str, folder: Path) -> None:
    found: dict[str, Any] = {"release": megatron_version.release()}
    for precision in PRECISIONS:
        config = config_of(folder / precision, precision)
        launch.initialize(config)
        state = build_train_state(config)
        if action == "write":
            train(state, range(STEPS))
            with CheckpointSaver(state, Path(config.run.dir, "checkpoints")) as saver:
                saver.save({"cursor": 7})
        else:
            newest = latest(Path(config.run.dir))
            assert newest is not None
            assert load_checkpoint(state, newest) == {"cursor": 7} and state.step == STEPS
        found[precision] = train(state, range(STEPS, 2 * STEPS))
    launch.shutdown()
    print(json.dumps(found))


def config_of(folder: Path, precision: str) -> Config:
    return validate(
        {
            "run": {"dir": str(folder)},
            "model": {"architecture": MODEL, "vocab_padding": 8},
            "training": {"precision": precision, "steps": 2 * STEPS, "tokens_per_micro_batch": 96},
            "optimizer": {"lr": 2e-3, "warmup_steps": 2, "schedule": "cosine"},
        }
    )


def train(state: TrainState, steps: range) -> list[list[float]]:
    """Returns loss and gradient norm of every step."""
    results = []
    for step in steps:
        batch = batch_of(step)
        micro_batches = make_micro_batches(batch, state.config, torch.ones(len(batch.tokens)))
        result = train_step(state, micro_batches, negative_logprob, 200)
        state.step += 1
        results.append([result.loss, result.grad_norm])
    return results


def negative_logprob(statistics: torch.Tensor, micro_batch: MicroBatch, _: int) -> tuple[torch.Tensor, dict[str, Any]]:
    return -(statistics[0] * micro_batch.weights).sum(), {}


def batch_of(step: int, count: int = 9) -> SequenceBatch:
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(3, 60, (count,), generator=generator)
    total = int(lengths.sum())
    return SequenceBatch(
        tokens=torch.randint(0, VOCABULARY, (total,), generator=generator),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        prompt_lengths=torch.ones(count, dtype=torch.int64),
        behaviour_logprobs=torch.zeros(total),
        advantages=torch.zeros(count),
        weights=torch.ones(count),
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
