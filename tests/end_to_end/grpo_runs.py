"""A policy small enough for tests, and the real command that trains it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from megatron_lwz.distributed import environment
from megatron_lwz.types import Prompt, Rollout

ROOT = Path(__file__).parents[2]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
END_OF_TEXT = len(BYTES)


def share_of_spaces(prompt: Prompt, rollouts: Sequence[Rollout]) -> list[float]:
    """A reward that a random policy already varies in: the share of tokens below 128."""
    return [sum(token < 128 for token in rollout.tokens) / len(rollout.tokens) for rollout in rollouts]


def write_example(folder: Path, *, vocab_size: int = END_OF_TEXT + 1, **sections: Any) -> Path:
    """Tokenizer (one token per byte), prompts and config.yaml in `folder`; the policy starts from random weights.

    With `vocab_size` 256 the policy cannot write the end-of-text token: every rollout runs to its token limit.
    """
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(BYTES)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
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
                "vocab_size": vocab_size,
                "initializer_range": 0.2,
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
        "rollout": {"max_new_tokens": 24, "temperature": 0.8, "commit_interval": 0.05},
        "reward": {"functions": ["tests.end_to_end.grpo_runs:share_of_spaces"]},
        "grpo": {"group_size": 4, "truncated": "keep"},
        "optimizer": {"lr": 1e-3},
        "checkpoint": {"interval": 2, "keep": 10},
        "evaluation": {"concurrent": False},
    }
    for name, values in sections.items():
        tree.setdefault(name, {}).update(values)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder / "config.yaml"


def command(config: Path, *overrides: str, ranks: int = 1) -> list[str]:
    """The command line of the GRPO stage."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    stage = ["-m", "megatron_lwz.cli.train_grpo", str(config), *overrides]
    return [sys.executable, *(torchrun if ranks > 1 else []), *stage]


def variables() -> dict[str, str]:
    """Environment of the stage: two ranks and an engine share two cores; the tests' reward can be imported."""
    return environment.child_environment(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")


def train(config: Path, *overrides: str, ranks: int = 1, timeout: float = 300.0) -> None:
    """Runs the stage to its end; AssertionError with its output if it fails."""
    done = subprocess.run(
        command(config, *overrides, ranks=ranks),
        cwd=ROOT,
        env=variables(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
