"""Tokens per second of the embedded engine, beside transformers' generate with the same weights, threads and prompts.

    python tools/bench_engine.py [--model DIR] [--batch 16 64] [--new 128] [--threads 2] [--repeat 3]
    python tools/bench_engine.py --url http://127.0.0.1:8000 [--batch 16] [--new 512]     a running server, by its streams

Without --model it creates a random Qwen2 of 4 layers × 256 with a vocabulary of 4096 (fp32). The engines take turns,
and the best of the repeats counts. `engine, HTTP` streams through `lwz serve-engine` in a separate process. `one read` is the
rate if a step took as long as one read of the weights: no engine writes faster. The token of a server at --url is read from
LWZ_ENGINE_TOKEN.
"""

from __future__ import annotations

import argparse
import asyncio
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
    if options.url:
        for batch in options.batch:
            token = os.environ.get("LWZ_ENGINE_TOKEN")
            rates = [_stream_rate(options.url, token, _prompts(options, batch), options) for _ in range(options.repeat)]
            print(f"batch {batch:>4}: {max(rates):6.0f} tok/s")
        return
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        if options.model is None:
            from tests.support.engine_model import write_engine_model

            options.model = Path(temporary)
            write_engine_model(options.model, hidden=256, layers=4, vocab=4096)
        _compare(options, Path(temporary) / "server.log")


def _compare(options: argparse.Namespace, log_path: Path) -> None:
    import torch

    from megatron_lwz.distributed import environment
    from megatron_lwz.http.ports import free_port
    from megatron_lwz.http.process import ServerProcess
    from megatron_lwz.rollout.engine.policy import ServedPolicy

    torch.set_num_threads(options.threads)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    wanted = {"--model": options.model, "--port": port, "--slots": max(options.batch), "--threads": options.threads}
    command = [sys.executable, "-m", "megatron_lwz.cli.serve_engine"]
    command += [str(part) for pair in wanted.items() for part in pair]
    environment_ = environment.child_environment(PYTHONPATH=str(ROOT))
    server = ServerProcess(command, url=url, token=None, env=environment_, log_path=log_path)
    policy = ServedPolicy(options.model)
    from transformers import Qwen2ForCausalLM

    reference = Qwen2ForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    server.start()
    try:
        server.wait_ready()
        read = _seconds_of_a_read(reference)
        print(
            f"{'batch':>5}  {'engine':>8}  {'engine, HTTP':>12}  {'transformers':>12}  {'one read':>8}  "
            "HTTP / transformers  HTTP / one read"
        )
        for batch in options.batch:
            prompts = _prompts(options, batch)
            rates = [
                (
                    _rate(partial(_decode, policy, prompts, options.new), batch * options.new),
                    _stream_rate(url, None, prompts, options),
                    _rate(partial(_generate, reference, prompts, options.new), batch * options.new),
                )
                for _ in range(options.repeat)
            ]
            own, http, other = (max(column) for column in zip(*rates, strict=True))
            floor = batch / read
            print(
                f"{batch:>5}  {own:>8.1f}  {http:>12.1f}  {other:>12.1f}  {floor:>8.0f}  {http / other:>19.2f}  {http / floor:>15.2f}",
                flush=True,
            )
    finally:
        server.stop()


def _prompts(options: argparse.Namespace, batch: int) -> list[list[int]]:
    import random

    source = random.Random(batch)
    return [[source.randrange(256) for _ in range(options.prompt)] for _ in range(batch)]


def _seconds_of_a_read(model: Any) -> float:
    """Returns how long one read of what a decode step multiplies with takes: all weights, the output layer's among them."""
    import torch

    weights = [weight for weight in model.parameters() if weight.dim() == 2]  # a tied embedding is listed once
    with torch.inference_mode():
        for _ in range(2):  # the first warms up
            start = time.perf_counter()
            for weight in weights:
                weight.view(torch.int32).max()
            seconds = time.perf_counter() - start
    return seconds


def _rate(action: Callable[[], None], tokens: int) -> float:
    start = time.perf_counter()
    action()
    return tokens / (time.perf_counter() - start)


def _decode(policy: Any, prompts: list[list[int]], new: int) -> None:
    from megatron_lwz.models.decoding_cache import CachedSequence

    decoder = policy.decoder(len(prompts))
    counts: dict[CachedSequence, int] = {}
    for seed, prompt in enumerate(prompts):
        decoder.add(CachedSequence(tuple(prompt), seed=seed))
    while len(decoder):
        for sampled in decoder.step():
            counts[sampled.sequence] = counts.get(sampled.sequence, 0) + 1
            if counts[sampled.sequence] == new:
                decoder.remove(sampled.sequence)


def _generate(model: Any, prompts: list[list[int]], new: int) -> None:
    import torch

    tokens = torch.tensor(prompts)
    with torch.inference_mode():
        model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=new,
            do_sample=True,
            top_k=0,
            eos_token_id=None,
        )


def _stream_rate(url: str, token: str | None, prompts: list[list[int]], options: argparse.Namespace) -> float:
    """Returns the rate over the time from the first request to the last token; every request streams log-probs."""
    import aiohttp

    async def read(session: aiohttp.ClientSession, index: int, prompt: list[int]) -> None:
        body = {
            "model": options.served_model_name,
            "prompt": prompt,
            "max_tokens": options.new,
            "seed": index,
            "stop": ["</answer>"],
            "ignore_eos": True,
            "stream": True,
            "logprobs": 0,
            "return_token_ids": True,
        }
        async with session.post(f"{url}/v1/completions", json=body) as response:
            response.raise_for_status()
            async for _ in response.content.iter_any():
                pass

    async def all_at_once() -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(read(session, index, prompt) for index, prompt in enumerate(prompts)))

    return _rate(lambda: asyncio.run(all_at_once()), len(prompts) * options.new)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder of a Qwen2.5")
    parser.add_argument("--url", help="measure a server that runs already (this engine or vLLM)")
    parser.add_argument("--served-model-name", default="policy")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64], help="sequences at once")
    parser.add_argument("--prompt", type=int, default=32, help="prompt tokens")
    parser.add_argument("--new", type=int, default=128, help="tokens written per sequence")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
