#!/usr/bin/env python
"""How time and memory of an update and of decoding grow with the length of a rollout.

    python tools/bench_lengths.py [--length 512 2048 8192 32768] [--model DIR] [--threads 1] [--page FILE]

Without --model it creates a random Qwen2 of 4 layers × 256 with a vocabulary of 4,096 (fp32). *Update*: forward, backward and
optimizer step of one rollout of that length, CPU seconds, the smaller of two. *Prompt*: the engine reads a prompt of that length.
*Token*: it then writes 32 tokens for each of 4 sequences behind it; CPU seconds per token. Rates divide by the FLOPs of the
matrix products, attention included, so a constant rate is growth by the FLOPs and no more. Each figure comes from a process of
its own; memory is its maximum resident set beyond what was resident when the model was built.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
import torch

SEQUENCES, NEW = 4, 32
HEAD = "| tokens | update s | GFLOP/s | MiB | prompt s | GFLOP/s | token ms | GFLOP/s | MiB |\n|---|---|---|---|---|---|---|---|---|"


def main() -> None:
    """Measures all lengths and prints, and on request writes, the table."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    if options.side:
        print(json.dumps({"update": update, "decode": decode}[options.side](options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            from tests.support.engine_model import write_engine_model

            options.model = Path(folder)
            write_engine_model(
                options.model, hidden=256, layers=4, vocab=4096, max_length=2 * max(options.length), tied=True
            )
        print(HEAD)
        lines = []
        for length in options.length:
            lines.append(_line(length, *(_run(side, length, options) for side in ("update", "decode"))))
            print(lines[-1], flush=True)
    if options.page:
        capability = torch.backends.cpu.get_cpu_capability()
        about = f"{date.today()}, {capability}, torch {torch.__version__}, {options.threads} thread(s)."
        text = f"# Growth with the length of a rollout\n\n    python tools/bench_lengths.py\n\n{about}\n\n"
        explained = " ".join((__doc__ or "").split("\n\n")[2].split())
        options.page.write_text(f"{text}{explained}\n\n{HEAD}\n" + "\n".join(lines) + "\n")


def _run(side: str, length: int, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--length", str(length), "--model", str(options.model)]
    command += ["--threads", str(options.threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _line(length: int, updated: dict[str, float], decoded: dict[str, float]) -> str:
    cells = [f"{length:,}", f"{updated['seconds']:.2f}", f"{updated['rate']:.0f}", f"{updated['memory']:,.0f}"]
    cells += [f"{decoded['prompt']:.2f}", f"{decoded['prompt_rate']:.0f}", f"{1e3 * decoded['token']:.2f}"]
    cells += [f"{decoded['token_rate']:.0f}", f"{decoded['memory']:,.0f}"]
    return f"| {' | '.join(cells)} |"


def update(options: argparse.Namespace) -> dict[str, float]:
    """Measures one training step of a single rollout."""
    import bench_supervised

    length = options.length[0]
    arch = _architecture(options)
    made = argparse.Namespace(
        model=str(options.model), sequences=1, length=length - 1, vocabulary=arch.vocab_size, steps=3
    )
    step = bench_supervised.ours(made)
    resident = psutil.Process().memory_info().rss
    spent = []
    for index in range(3):
        tokens = bench_supervised.batch_of(made, index)
        begun = time.process_time()
        step(tokens)
        spent.append(time.process_time() - begun)
    flops = 3 * _flops(arch, length)
    return {"seconds": min(spent[1:]), "rate": flops / min(spent[1:]) / 1e9, "memory": _grown(resident)}


@torch.inference_mode()
def decode(options: argparse.Namespace) -> dict[str, float]:
    """Measures reading a prompt of the length, and the tokens after it."""
    from megatron_lwz.models.decoding_cache import CachedSequence
    from megatron_lwz.rollout.engine.policy import ServedPolicy

    length = options.length[0]
    policy = ServedPolicy(options.model, max_length=length + NEW + 2)
    decoder = policy.decoder(SEQUENCES)
    resident = psutil.Process().memory_info().rss
    prompt = tuple(
        torch.randint(policy.arch.vocab_size, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    )
    for seed in range(SEQUENCES):
        decoder.add(CachedSequence(prompt, seed=seed))
    begun = time.process_time()
    while decoder.writing < SEQUENCES:
        decoder.step()
    read = time.process_time() - begun
    spent = []
    for _ in range(NEW):
        begun = time.process_time()
        decoder.step()
        spent.append((time.process_time() - begun) / SEQUENCES)
    token = sorted(spent)[NEW // 2]
    next_token = _flops(policy.arch, length + 1) - _flops(policy.arch, length)
    return {
        "prompt": read, "prompt_rate": _flops(policy.arch, length) / read / 1e9,
        "token": token, "token_rate": next_token / token / 1e9, "memory": _grown(resident),
    }  # fmt: skip


def _flops(arch: Any, length: int) -> float:
    from megatron_lwz.config.flops import sequence_flops

    return sequence_flops(arch, length)


def _architecture(options: argparse.Namespace) -> Any:
    from megatron_lwz.config import validate

    return validate({"model": {"hf": str(options.model)}}).architecture()


def _grown(resident: int) -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - resident / 2**20


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, nargs="+", default=[512, 2048, 8192, 32768])
    parser.add_argument("--model", type=Path, help="Hugging Face folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--page", type=Path, help="write a Markdown page")
    parser.add_argument("--side", choices=("update", "decode"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
