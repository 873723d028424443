"""Time to read a prompt: the embedded engine's forward pass over it, beside transformers' with the same weights and threads.

    python tools/bench_prefill.py [--model DIR] [--length 512 2048 8192] [--threads 1] [--repeat 3]

Without --model it creates a random Qwen2 of 4 layers × 256 with a vocabulary of 4096 (fp32). The engine reads a prompt in pieces of
2,048 tokens and keeps its keys and values; transformers (SDPA) reads it whole, keeps none, and computes the logits of the last token
alone. They take turns; the smallest of the repeats counts, in CPU seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main(argv: Sequence[str]) -> None:
    """Measures and prints a table."""
    options = _parser().parse_args(list(argv))
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        if options.model is None:
            from tests.support.engine_model import write_engine_model

            options.model = Path(temporary)
            write_engine_model(options.model, hidden=256, layers=4, vocab=4096)
        _compare(options)


def _compare(options: argparse.Namespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from megatron_lwz.rollout.engine.policy import ServedPolicy

    torch.set_num_threads(options.threads)
    decoder = ServedPolicy(options.model).decoder(1)
    reference = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    print(f"{'tokens':>7}  {'engine':>8}  {'transformers':>12}  ratio")
    for length in options.length:
        tokens = torch.randint(reference.config.vocab_size, (length,), generator=torch.Generator().manual_seed(length))
        rounds = [
            (_seconds(partial(_prefill, decoder, tokens.tolist())), _seconds(partial(_transformers, reference, tokens)))
            for _ in range(options.repeat)
        ]
        own, other = (min(column) for column in zip(*rounds, strict=True))
        print(f"{length:>7}  {own:>8.3f}  {other:>12.3f}  {own / other:>5.2f}", flush=True)


def _seconds(action: Callable[[], None]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def _prefill(decoder: Any, tokens: list[int]) -> None:
    from megatron_lwz.models.decoding_cache import CachedSequence

    decoder.forget_prefixes()
    sequence = CachedSequence(tuple(tokens))
    decoder.add(sequence)
    while not decoder.step():
        pass
    decoder.remove(sequence)


def _transformers(model: Any, tokens: Any) -> None:
    import torch

    with torch.inference_mode():
        model(tokens[None], use_cache=False, logits_to_keep=1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder; default: a random one is created")
    parser.add_argument("--length", type=int, nargs="+", default=[512, 2048, 8192], help="tokens of the prompt")
    parser.add_argument("--threads", type=int, default=1, help="threads of either side")
    parser.add_argument("--repeat", type=int, default=3, help="turns")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
