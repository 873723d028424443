#!/usr/bin/env python
"""The whole GRPO step beside TRL's GRPOTrainer: CPU seconds, seconds, tokens/s and peak memory of all processes.

    make bench-grpo                                    TRL in an environment of its own, the default cases, a page
    python tools/bench_grpo.py --peer PYTHON [--case LENGTH:VOCABULARY:BATCH …] [--steps 3] [--page FILE] [--device cuda]

Both sides train the same random policy (Qwen2) on the same prompts with the same group size, the same reward and one
optimizer step per batch, on policy, in fp32 (bf16 on a GPU), with one thread per process. The engine and the trainer of
our side take turns (max_staleness 0). Every rollout has the same length: a planted direction makes the end of a text
impossible (see `write_policy`). The sides run in turns, each in processes of its own; a step ends when its metrics are
written, the first one does not count, and the median of the others does.

Our micro-batch holds 2,048 tokens or one rollout. TRL generates with transformers, without gradient checkpointing; its
micro-batch holds as many rows as fit both 8,192 tokens and 1 GiB of fp32 logits, at least one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from bench_grpo_page import write_page
from gpu_step import DeviceMemory, write_tokenizer
from step_watch import StepWatch

from megatron_lwz.run_paths import RunPaths

ROOT = Path(__file__).resolve().parent.parent
GROUP = 8
MICRO_BATCH_TOKENS = 2048
PEER_TOKENS = 8192
PEER_LOGITS = 2**30
"""Most bytes of fp32 logits in one of TRL's micro-batches, unless a single row has more."""
CASES = ("256:4096:32", "1024:4096:32", "4096:4096:8", "256:151936:32", "1024:151936:8", "256:4096:8", "256:4096:64")


@dataclass(frozen=True)
class Case:
    """One comparison: new tokens per rollout, vocabulary, and rollouts per step."""

    length: int
    vocabulary: int
    batch: int

    @property
    def peer_rows(self) -> int:
        """Rollouts in one of TRL's micro-batches: a divisor of the batch."""
        most = min(PEER_TOKENS, PEER_LOGITS // (4 * self.vocabulary)) // (self.length + 8)
        return max(size for size in range(1, self.batch + 1) if self.batch % size == 0 and size <= max(1, most))


@dataclass(frozen=True)
class Found:
    """What one side took for a step (medians), in seconds and bytes. `engine_cpu` and `rollout_seconds` are parts."""

    seconds: float
    cpu: float
    rollout_cpu: float
    rollout_seconds: float
    memory: int
    tokens_per_second: float


def main() -> None:
    """Runs all cases and prints, and on request writes, the table."""
    options = parse()
    rows: list[dict[str, Any]] = []
    for text in options.case:
        case = Case(*map(int, text.split(":")))
        with tempfile.TemporaryDirectory(prefix="bench-grpo-") as name:
            folder = Path(name)
            write_policy(folder / "policy", case, options)
            write_prompts(folder / "prompts.jsonl", case.batch // GROUP)
            sides = {"ours": our_command(folder, case, options), "trl": peer_command(folder, case, options)}
            found = {side: measure(command, folder / side, case, options) for side, command in sides.items()}
        rows.append(asdict(case) | {side: asdict(result) for side, result in found.items()})
        print(json.dumps(rows[-1]), flush=True)
    if options.page:
        write_page(
            options.page, rows, versions(options) | {"command": f"python tools/bench_grpo.py {' '.join(sys.argv[1:])}"}
        )


def measure(command: list[str], folder: Path, case: Case, options: argparse.Namespace) -> Found:
    """Runs one side until it has written the metrics of its last step."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}", "HF_HUB_OFFLINE": "1"}
    folder.mkdir(exist_ok=True)
    steps = RunPaths(folder).metrics
    with (folder / "log").open("w") as log, DeviceMemory(options.device) as device:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        with StepWatch(process.pid) as watch:
            ended = watch.until(steps, options.steps + 1)
        process.wait()
    if not ended:
        raise SystemExit(f"{command[0]} ended early: {(folder / 'log').read_text()[-2000:]}")
    lines = [json.loads(line) for line in steps.read_text().splitlines()[1 : options.steps + 1]]
    tokens = case.length * case.batch
    for line in lines:
        if line["rollout/tokens"] != tokens:
            raise SystemExit(f"{folder.name} wrote {line['rollout/tokens']} tokens in a step, not {tokens}")
    seconds = statistics.median(watch.seconds())
    rollout = [line["cpu/rollout"] for line in lines] if "cpu/rollout" in lines[0] else watch.engine_cpu()
    return Found(
        seconds=seconds,
        cpu=statistics.median(watch.cpu()),
        rollout_cpu=statistics.median(rollout),
        rollout_seconds=statistics.median(line["seconds/rollout"] for line in lines),
        memory=device.peak if options.device == "cuda" else watch.peak,
        tokens_per_second=tokens / seconds,
    )


def our_command(folder: Path, case: Case, options: argparse.Namespace) -> list[str]:
    """Writes the main job's config and returns its command."""
    tree = {
        "run": {"dir": str(folder / "ours")},
        "model": {"hf": str(folder / "policy")},
        "training": {
            "steps": options.steps + 2, "prompts_per_step": case.batch // GROUP,
            "precision": precision(options), "tokens_per_micro_batch": max(MICRO_BATCH_TOKENS, case.length + 64),
        },
        "data": {"prompts": str(folder / "prompts.jsonl"), "template": "bare", "max_prompt_tokens": 64},
        "rollout": {
            "max_new_tokens": case.length, "temperature": 1.0, "concurrency": case.batch, "engine_threads": 1,
            "max_staleness": 0,
        },
        "reward": {"functions": ["bench_grpo_peer:share_of_odd_ids"]},
        "grpo": {"group_size": GROUP, "truncated": "keep"},
        "optimizer": {"lr": 1e-6, "weight_decay": 0.0},
        "checkpoint": {"interval": 0},
        "evaluation": {"concurrent": False},
        "logging": dict(tensorboard=False),  # noqa: C408
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return [sys.executable, "-m", "megatron_lwz.cli.train_grpo", str(path)]


def peer_command(folder: Path, case: Case, options: argparse.Namespace) -> list[str]:
    """Writes TRL's settings and returns the command."""
    settings = {
        "policy": str(folder / "policy"), "prompts": str(folder / "prompts.jsonl"), "out": str(folder / "trl"),
        "metrics": str(RunPaths(folder / "trl").metrics),
        "length": case.length, "batch": case.batch, "rows": case.peer_rows, "group": GROUP,
        "steps": options.steps + 2, "device": options.device,
    }  # fmt: skip
    path = folder / "trl.json"
    path.write_text(json.dumps(settings))
    return [options.peer, str(ROOT / "tools" / "bench_grpo_peer.py"), str(path)]


def precision(options: argparse.Namespace) -> str:
    """Returns the precision of both sides."""
    return "bf16" if options.device == "cuda" else "fp32"


def write_policy(folder: Path, case: Case, options: argparse.Namespace) -> None:
    """Writes a random Qwen2 that never ends a text, and its tokenizer.

    The first coordinate of every token's embedding is 1, far above the others, and −1 for the end of a text. The last
    hidden state keeps it, so with tied embeddings the logit of the end lies some 30 below those of all other tokens.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    heads = max(2, options.hidden // 64)
    end = case.vocabulary - 1
    config = Qwen2Config(
        vocab_size=case.vocabulary, hidden_size=options.hidden, intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers, num_attention_heads=heads, num_key_value_heads=heads // 2,
        max_position_embeddings=32768, tie_word_embeddings=True, bos_token_id=None, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).float()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.model.embed_tokens.weight[end, 0] = -1.0
    model.save_pretrained(folder)
    write_tokenizer(folder, case.vocabulary)


def write_prompts(path: Path, count: int) -> None:
    """Writes one prompt per group."""
    rows = [{"id": f"p{i}", "prompt": f"Task {i:03}", "length": {"lower": 5, "upper": 50}} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def versions(options: argparse.Namespace) -> dict[str, Any]:
    """Returns what the figures depend on."""
    code = "import json, torch, transformers, trl; print(json.dumps([torch.__version__, transformers.__version__, trl.__version__]))"
    done = subprocess.run([options.peer, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    peer = dict(zip(("torch", "transformers", "trl"), json.loads(done.stdout.splitlines()[-1]), strict=True))
    device = torch.cuda.get_device_name() if options.device == "cuda" else torch.backends.cpu.get_cpu_capability()
    shape = f"{options.layers} layers × {options.hidden}"
    return {"date": f"{date.today()}", "device": device, "torch": torch.__version__, "peer": peer, "shape": shape}


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer", required=True, help="Python of an environment with TRL: `make .venv-trl/.ready` makes one"
    )
    parser.add_argument("--case", nargs="+", default=CASES, metavar="LENGTH:VOCABULARY:BATCH")
    parser.add_argument("--steps", type=int, default=3, help="counted steps, after one that is not")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--page", type=Path, help="write a Markdown page, and the figures beside it as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
