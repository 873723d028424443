"""A policy small enough for tests, and the command that trains it."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from megatron_lwz.algorithms.grpo import LossInputs
from megatron_lwz.config.sections import GrpoSection
from megatron_lwz.types import Prompt, Rollout
from tests.support import stages
from tests.support.stages import ROOT, variables

__all__ = ["ROOT", "command", "share_of_spaces", "train", "variables", "write_example"]

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
END_OF_TEXT = len(BYTES)


def share_of_spaces(prompt: Prompt, rollouts: Sequence[Rollout]) -> list[float]:
    """A reward that a random policy already varies in: the share of tokens below 128."""
    return [sum(token < 128 for token in rollout.tokens) / len(rollout.tokens) for rollout in rollouts]


def holds_megatron(prompt: Prompt, rollouts: Sequence[Rollout]) -> list[float]:
    """1 where the process that scores rollouts has imported Megatron-Core."""
    return [float(any(name.partition(".")[0] == "megatron" for name in sys.modules))] * len(rollouts)


def fails_on_a_batch(inputs: LossInputs, section: GrpoSection) -> Tensor:
    """A loss function that the check before the run cannot find fault with."""
    if inputs.sequences == 2 * section.group_size:
        raise RuntimeError("no such batch")
    return -inputs.advantage * inputs.logprob


def fails_at_one_entropy(inputs: LossInputs, section: GrpoSection) -> Tensor:
    """A loss function that is not finite for a batch of the mean entropy BAD_ENTROPY."""
    bad = abs(float(inputs.entropy.mean()) - float(os.environ.get("BAD_ENTROPY", "-1"))) < 1e-5
    return -inputs.advantage * inputs.logprob * (math.nan if bad else 1.0)


def write_example(
    folder: Path,
    *,
    endless: bool = False,
    words: Sequence[str] = (),
    more_ids: int = 0,
    sizes: Mapping[str, int] | None = None,
    **sections: Any,
) -> Path:
    """Tokenizer (one token per byte, and `words`), prompts and config.yaml in `folder`; the policy starts from random weights.

    An `endless` policy cannot write the end-of-text token: every rollout runs to its token limit. `more_ids` are embeddings
    for tokens that the test itself adds. `sizes` are of the architecture.
    """
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(BYTES)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.add_tokens(list(words))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    rows = [{"id": f"p{i}", "prompt": f"Task {i}", "length": {"lower": 5, "upper": 50}} for i in range(7)]
    for name, chosen in (("prompts.jsonl", rows[:5]), ("held_out.jsonl", rows[5:])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in chosen))
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "model": {
            "architecture": {
                "num_hidden_layers": 2,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": END_OF_TEXT + 1 + len(words) + more_ids,
                "initializer_range": 0.2,
                **(sizes or {}),
            },
            "tokenizer": str(folder),
        },
        "training": {"steps": 4, "prompts_per_step": 2, "precision": "fp32", "tokens_per_micro_batch": 512},
        "data": {
            "prompts": str(folder / "prompts.jsonl"),
            "held_out_prompts": str(folder / "held_out.jsonl"),
            "template": "bare",
            "max_prompt_tokens": 64,
        },
        "rollout": {"max_new_tokens": 24, "temperature": 0.8, "commit_interval": 0.05, "engine_threads": 1},
        "reward": {"functions": ["tests.support.grpo_runs:share_of_spaces"]},
        "grpo": {"group_size": 4, "truncated": "keep"},
        "optimizer": {"lr": 1e-3},
        "checkpoint": {"interval": 2, "keep": 10},
        "evaluation": {"concurrent": False},
    }
    if endless:
        from tests.support.endless_policy import write_endless_policy  # needs Megatron, and rewards run without it

        tree["model"]["hf"] = str(write_endless_policy(folder, tree["model"].pop("architecture"), end=END_OF_TEXT))
    for name, values in sections.items():
        tree.setdefault(name, {}).update(values)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder / "config.yaml"


def command(config: Path, *overrides: str, ranks: int = 1, restarts: int = 0) -> list[str]:
    """The command line of the GRPO stage."""
    return stages.command("train_grpo", str(config), *overrides, ranks=ranks, restarts=restarts)


def train(config: Path, *overrides: str, ranks: int = 1, timeout: float = 300.0, real: bool = False) -> str:
    """Runs the stage to its end; returns what it said, AssertionError if it fails. `real`: see tests/support/stages.py."""
    done = stages.run("train_grpo", str(config), *overrides, ranks=ranks, timeout=timeout, real=real)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout
