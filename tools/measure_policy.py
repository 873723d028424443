#!/usr/bin/env python
"""Takes a real policy through conversion, every layout and both supervised losses on this machine, and prints a page.

    python tools/measure_policy.py --hf models/Qwen2.5-0.5B --work runs/measure [--markdown PAGE.md]

Every part runs the command that a user runs, in fp32, one after the other:

- `convert_hf.py`: import, verify, export; the exported weights must have the checksum of the imported ones;
- `score` under one rank, TP 2, PP 2 and CP 2: log-probs of the same tokens against the fp64 reference;
- `pretrain` and `train_sft`: the loss of the first step against transformers' on the same tokens.

Peak memory is the largest resident set of one process of the command.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from torch import Tensor

from megatron_lwz.cli import option_types
from megatron_lwz.config import read_hf_architecture
from megatron_lwz.data.instructions import Rendering, parse_conversation, tokenize
from megatron_lwz.data.text.sample import TEXTS
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.models.hf import HfFolder, checksum_folder
from megatron_lwz.models.hf.exact import ExactModel
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.verification import sample_texts
from megatron_lwz.units import GIB

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS: Mapping[str, Mapping[str, int]] = {
    "one rank": {},
    "tensor 2": {"tensor": 2},
    "pipeline 2": {"pipeline": 2},
    "context 2": {"context": 2},
}


@dataclasses.dataclass(frozen=True)
class Done:
    """What a command printed, how long it took, and the peak memory of its largest process, GiB."""

    output: str
    seconds: float
    memory: float


def main() -> None:
    """Runs all parts and prints the page, or writes it to `--markdown`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", type=Path, required=True, metavar="DIR", help="the policy, with its tokenizer")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="an empty folder for what is written")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="file to write; default: print")
    parser.add_argument("--sequences", type=option_types.positive, default=2, help="texts of random tokens")
    parser.add_argument("--length", type=option_types.positive, default=128, help="tokens of each")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    sections = [
        measure_conversion(options.hf, options.work),
        measure_layouts(options.hf, options.work, options.sequences, options.length),
        measure_losses(options.hf, options.work),
    ]
    page = "\n\n".join(sections) + "\n"
    if options.markdown is None:
        sys.stdout.write(page)
    else:
        options.markdown.write_text(page, encoding="utf-8")


def measure_conversion(hf: Path, work: Path) -> str:
    """Imports, verifies and exports the policy. Raises AssertionError unless the exported weights are the imported ones."""
    checkpoint, back = work / "checkpoint", work / "back"
    tool = [str(ROOT / "tools" / "convert_hf.py")]
    done = {
        "import": run([*tool, "import", "--hf", str(hf), "--out", str(checkpoint)]),
        "verify": run([*tool, "verify", "--hf", str(hf), "--checkpoint", str(checkpoint)]),
        "export": run([*tool, "export", "--checkpoint", str(checkpoint), "--out", str(back)]),
    }
    assert checksum_folder(hf) == checksum_folder(back), "the exported weights differ"
    rows = [[name, f"{one.seconds:.0f}", f"{one.memory:.1f}"] for name, one in done.items()]
    table = markdown(["`convert_hf.py`", "seconds", "peak GiB"], rows)
    said = done["verify"].output.strip()
    return f"## Conversion\n\n{table}\n\nThe exported weights have the checksum of the imported ones. `verify` said:\n\n```\n{said}\n```"


def measure_layouts(hf: Path, work: Path, sequences: int, length: int) -> str:
    """Scores the same tokens under every layout, against the exact log-probs."""
    arch = read_hf_architecture(hf)
    samples = sample_texts(hf, arch, sequences=sequences, length=length, seed=1)
    texts = [text for found in samples.values() for text in found]
    exact = torch.cat(ExactModel(HfFolder(hf), arch).logprobs(texts))
    source = work / "tokens.jsonl"
    write_rows(source, [{"id": str(k), "tokens": text.tolist(), "prompt_length": 1} for k, text in enumerate(texts)])
    rows, first = [], None
    for name, layout in LAYOUTS.items():
        target = work / f"{name.replace(' ', '_')}.jsonl"
        settings = [f"parallel.{key}={value}" for key, value in layout.items()]
        stage = ["score", str(write_config(work / "score.yaml", hf, work / "score")), *settings]
        done = run(launched([*stage, "--input", str(source), "--output", str(target)], ranks=2 if layout else 1))
        scored = torch.cat([torch.tensor(row["logprobs"], dtype=torch.float64) for row in read_lines(target)])
        first = scored if first is None else first
        error, apart = (scored - exact).abs(), (scored - first).abs()
        values = [f"{float(value):.1e}" for value in (error.max(), error.mean(), apart.max())]
        rows.append([name, *values, f"{done.seconds:.0f}", f"{done.memory:.1f}"])
    what = " and ".join(f"{sum(len(text) for text in found)} {kind}" for kind, found in samples.items())
    heads = ["layout", "largest error", "mean error", "largest difference to one rank", "seconds", "peak GiB of a rank"]
    return f"## Log-probs of every layout\n\nAgainst fp64, over {what}:\n\n{markdown(heads, rows)}"


def measure_losses(hf: Path, work: Path) -> str:
    """Compares the loss of the first step of pretraining and fine-tuning with transformers' on the same tokens."""
    tokenizer = Tokenizer(hf)
    end = min(tokenizer.eos_ids)
    documents = [torch.tensor([*tokenizer.encode(text), end]) for text in TEXTS]
    write_rows(work / "corpus.jsonl", [{"text": text} for text in TEXTS])
    talks = [{"prompt": text[: len(text) // 3], "response": text[len(text) // 3 :]} for text in TEXTS]
    write_rows(work / "talks.jsonl", talks)
    read = [parse_conversation(row, str(number)) for number, row in enumerate(talks)]
    examples = [tokenize(found, tokenizer.encode, sorted(tokenizer.eos_ids), Rendering()) for found in read]
    replies = [torch.tensor(example.tokens) for example in examples]
    longest = max(len(text) for text in (*documents, *replies))
    size = [f"training.sequence_length={longest}", f"training.tokens_per_micro_batch={2 * longest}"]
    steps = [f"training.sequences_per_step={len(TEXTS)}", *size]
    labels = [torch.tensor(example.trained) for example in examples]
    stages: list[tuple[str, str, str, list[Tensor], list[Tensor] | None]] = [
        ("pretraining", "pretrain", f"data.corpus=[{work / 'corpus.jsonl'}]", documents, None),
        ("fine-tuning", "train_sft", f"data.instructions=[{work / 'talks.jsonl'}]", replies, labels),
    ]
    rows = []
    for name, stage, data, texts, trained in stages:
        folder = work / stage
        config = write_config(work / f"{stage}.yaml", hf, folder)
        done = run(launched([stage, str(config), data, *steps], ranks=1))
        ours = float(read_lines(RunPaths(folder).metrics)[0]["loss"])
        theirs = transformers_loss(hf, texts, trained)
        values = [f"{ours:.6f}", f"{theirs:.6f}", f"{abs(ours - theirs):.1e}"]
        rows.append([name, *values, f"{done.seconds:.0f}", f"{done.memory:.1f}"])
    heads = ["stage", "loss of step 1", "transformers", "difference", "seconds", "peak GiB"]
    return f"## Losses\n\nThe same documents and conversations, fp32:\n\n{markdown(heads, rows)}"


@torch.no_grad()
def transformers_loss(hf: Path, texts: Sequence[Tensor], trained: Sequence[Tensor] | None) -> float:
    """Returns transformers' mean loss per label. `trained` marks the labels; None: all tokens but the first of a text."""
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(hf, dtype=torch.float32, use_safetensors=True).eval()
    total, count = 0.0, 0
    for text, mask in zip(texts, trained or [torch.ones(len(text), dtype=torch.bool) for text in texts], strict=True):
        losses = torch.nn.functional.cross_entropy(model(text[None]).logits[0, :-1], text[1:].long(), reduction="none")
        kept = losses[mask[1:]]
        total, count = total + float(kept.double().sum()), count + len(kept)
    return total / count


def launched(stage: Sequence[str], *, ranks: int) -> list[str]:
    """Returns the arguments of Python that start a stage on `ranks` ranks."""
    name, *arguments = stage
    if ranks == 1:
        return ["-m", f"megatron_lwz.cli.{name}", *arguments]
    agent = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "-m"]
    return [*agent, f"megatron_lwz.cli.{name}", *arguments]


def run(arguments: Sequence[str]) -> Done:
    """Runs Python with the arguments to its end. Raises RuntimeError with its output if it fails."""
    sys.stderr.write(f"python {' '.join(arguments)}\n")
    begun, memory = time.monotonic(), 0.0
    with Path(os.devnull).open() as nothing:
        process = psutil.Popen(
            [sys.executable, "-W", "ignore", *arguments],
            stdin=nothing, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        )  # fmt: skip
    while process.poll() is None:
        for one in [process, *process.children(recursive=True)]:
            try:
                memory = max(memory, one.memory_info().rss / GIB)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.2)
    output = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n{output}")
    return Done(output, time.monotonic() - begun, memory)


def write_config(path: Path, hf: Path, run_dir: Path) -> Path:
    """Writes the settings that the stages share: one step from the policy's weights that changes next to nothing."""
    tree = {
        "run": {"dir": str(run_dir)},
        "model": {"hf": str(hf)},
        "training": {"precision": "fp32", "steps": 1, "tokens_per_micro_batch": 512},
        "data": {"shuffle": False},
        "optimizer": {"lr": 1e-12},
        "checkpoint": {"asynchronous": False},
    }
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
