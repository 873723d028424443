"""The part `step` of `make gpu-check`: one GRPO step of a random 0.5B policy with the embedded engine.

It runs what a user runs, in this process, so that torch can be asked afterwards how much memory the trainer took. The
engine is a process of its own; what both take together is read from the device while they run. Meanwhile the same step is
rehearsed without the GPU (`--dry-run shapes`), for the comparison of its memory.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from gpu_findings import Findings, Table, run_part
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from megatron_lwz.cli import train_grpo
from megatron_lwz.config import load_config
from megatron_lwz.config.presets import PRESETS
from megatron_lwz.errors import LwzError
from megatron_lwz.metrics import read_metrics
from megatron_lwz.planner.dry_run import Memory, dry_run
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.types import Prompt, Rollout
from megatron_lwz.units import GIB

GAP = {"bf16": 0.5, "fp32": 1e-4}
"""Largest difference of a token's log-prob between engine and trainer, nats, by precision."""
SHOWN = ("rollout/tokens", "tokens_per_second", "seconds/", "grad_norm", "entropy", "mismatch/difference")
TINY = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "initializer_range": 0.2,
}  # fmt: skip


def share_of_odd_ids(prompt: Prompt, rollouts: Sequence[Rollout]) -> list[float]:
    """A reward in which the texts of a random policy already differ."""
    return [sum(token % 2 for token in rollout.tokens) / len(rollout.tokens) for rollout in rollouts]


def work(findings: Findings, device: str) -> None:
    """Runs the step and checks that it trained."""
    with tempfile.TemporaryDirectory(prefix="gpu-step-") as name:
        folder = Path(name)
        config = write_config(folder, device)
        run = RunPaths(folder / "run")
        with ThreadPoolExecutor(1) as aside, DeviceMemory(device) as both:
            plan = aside.submit(planned, config)
            try:
                train_grpo.main([str(config)])
            except LwzError as error:
                log = run.engine_log.read_text(errors="replace")[-800:] if run.engine_log.exists() else ""
                findings.fail(f"the run ended: {error} {log}")
        rows = read_metrics(run.metrics) if run.metrics.exists() else []
    report_memory(findings, device, both)
    report_plan(findings, device, plan)
    if rows:
        report_step(findings, rows[0], "bf16" if device == "cuda" else "fp32")
    elif not findings.failures:
        findings.fail("the run wrote no metrics")


def report_step(findings: Findings, row: dict[str, float], precision: str) -> None:
    """Adds the step's metrics; fails unless it trained on the texts that the engine wrote."""
    shown = [[name, f"{value:.4g}"] for name, value in sorted(row.items()) if name.startswith(SHOWN)]
    findings.add(Table("One step", ("metric", "value"), shown, "seconds and tokens per second include first launches"))
    findings.figures("step", row)
    norm, gap = row.get("grad_norm", math.nan), row.get("mismatch/difference/max", math.nan)
    if not (math.isfinite(norm) and norm > 0):
        findings.fail(f"grad_norm is {norm}")
    if not gap <= GAP[precision]:
        findings.fail(f"engine and trainer differ by {gap:.2g} nats on a token, over {GAP[precision]}")


def report_memory(findings: Findings, device: str, both: DeviceMemory) -> None:
    """Adds peak memory, in GiB."""
    if device == "cuda":
        found = {
            "trainer, torch.cuda.max_memory_allocated": torch.cuda.max_memory_allocated(),
            "trainer, torch.cuda.max_memory_reserved": torch.cuda.max_memory_reserved(),
            "trainer and engine on the device, sampled": both.peak,
        }
    else:
        found = {"trainer, resident set (no GPU)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    findings.add(Table("Memory", ("peak", "GiB"), [[name, f"{size / GIB:.2f}"] for name, size in found.items()]))
    findings.figures("memory", found)


def planned(config: Path) -> Memory:
    """Returns what the dry run says of the same step: packs filled to the cap, without Transformer Engine."""
    (memory,) = dry_run(load_config(config), "grpo", 1)
    return memory


def report_plan(findings: Findings, device: str, plan: Future[Memory]) -> None:
    """Adds the memory of the dry run, in GiB, beside what was measured. Where it cannot run (no compiler), the reason."""
    columns, title = ("peak of the trainer", "GiB"), "Memory beside the dry run"
    try:
        memory = plan.result()
    except LwzError as error:
        findings.add(Table(title, columns, [["dry run", f"not run: {error}"]]))
        return
    rows = [
        ["dry run, state", f"{memory.state / GIB:.4g}"],
        ["dry run, packs filled to the cap", f"{memory.peak / GIB:.4g}"],
    ]
    figures: dict[str, float] = {"state": memory.state, "peak": memory.peak}
    if device == "cuda":
        figures["measured / dry run"] = torch.cuda.max_memory_allocated() / memory.peak
        rows.append(["measured / dry run", f"{figures['measured / dry run']:.3f}"])
    findings.add(Table(title, columns, rows, "Packs of the step may be smaller than the cap, and then take less."))
    findings.figures("dry run", figures)


class DeviceMemory:
    """Samples the memory in use on the GPU by all processes, beyond what was in use on entry: `peak`, in bytes."""

    def __init__(self, device: str) -> None:
        self._cuda, self.peak = device == "cuda", 0
        self._done = threading.Event()

    def __enter__(self) -> DeviceMemory:
        if self._cuda:
            self._before = torch.cuda.mem_get_info()[0]
            self._thread = threading.Thread(target=self._sample)
            self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.1):
            self.peak = max(self.peak, self._before - torch.cuda.mem_get_info()[0])

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._cuda:
            self._thread.join()


def write_config(folder: Path, device: str) -> Path:
    """Writes tokenizer, prompts and config.yaml; returns the latter."""
    cuda = device == "cuda"
    vocab = PRESETS["qwen2.5-0.5b"].vocab_size if cuda else TINY["vocab_size"]
    write_tokenizer(folder, int(vocab) - 8)
    rows = [{"id": f"p{i}", "prompt": f"Task {i}", "length": {"lower": 5, "upper": 50}} for i in range(4)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model: dict[str, Any] = {"preset": "qwen2.5-0.5b"} if cuda else {"architecture": TINY}
    tree = {
        "run": {"dir": str(folder / "run")},
        "model": {**model, "tokenizer": str(folder)},
        "training": {
            "steps": 1, "prompts_per_step": 4 if cuda else 2,
            "precision": "bf16" if cuda else "fp32", "tokens_per_micro_batch": 8192 if cuda else 256,
        },
        "data": {"prompts": str(folder / "prompts.jsonl"), "template": "bare", "max_prompt_tokens": 64},
        "rollout": {"max_new_tokens": 512 if cuda else 12, "temperature": 1.0, "concurrency": 32},
        "reward": {"functions": ["gpu_step:share_of_odd_ids"]},
        "grpo": {"group_size": 8 if cuda else 4, "truncated": "keep"},
        "evaluation": {"concurrent": False},
        "logging": dict(tensorboard=False),  # noqa: C408
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder / "config.yaml"


def write_tokenizer(folder: Path, size: int) -> None:
    """Writes a tokenizer of one token per byte, of words that it never produces itself, and of the end of a text."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"Ġw{number}" for number in range(size - len(pieces) - 1)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: place for place, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))


if __name__ == "__main__":
    sys.exit(run_part(work, __doc__.splitlines()[0]))
