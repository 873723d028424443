"""`lwz serve-engine --model DIR --port N`: the embedded engine over HTTP. Its token is in LWZ_ENGINE_TOKEN.

`torchrun --nproc-per-node N -m megatron_lwz.cli.serve_engine …` shares a policy among N ranks, by tensor parallelism; rank 0 serves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_lwz.cli import common, option_types
from megatron_lwz.distributed import environment, heartbeat, launch, platform
from megatron_lwz.http.hosts import Hosts
from megatron_lwz.http.ports import bind
from megatron_lwz.http.server import check_exposure, run_app
from megatron_lwz.rollout.engine.core import EngineThread
from megatron_lwz.rollout.engine.lockstep import Calls, LeadingDecoder, LeadingWeights, follow
from megatron_lwz.rollout.engine.policy import ServedPolicy
from megatron_lwz.rollout.engine.server import EngineServer


def main(argv: Sequence[str]) -> None:
    """Serves until SIGINT or SIGTERM."""
    parser = _parser()
    options = parser.parse_args(list(argv))
    if options.cuda_graphs and not platform.has_gpu():
        parser.error("argument --cuda-graphs: this machine has no GPU; leave it out")
    token = environment.get("LWZ_ENGINE_TOKEN")
    check_exposure(options.host, token, "LWZ_ENGINE_TOKEN")
    if options.threads:
        torch.set_num_threads(options.threads)

    def check_port() -> None:
        bind(options.host, options.port).close()  # reports a taken port at once, not after the model is loaded

    try:
        policy = ServedPolicy(options.model, dtype=options.dtype, max_length=options.max_length, check=check_port)
        _run(options, token, policy)
    finally:
        launch.shutdown()


def _run(options: argparse.Namespace, token: str | None, policy: ServedPolicy) -> None:
    """Does this rank's part until the engine ends."""
    decoder = policy.decoder(options.slots, graphs=options.cuda_graphs)
    if environment.world_size() == 1:
        _serve(options, token, policy, EngineThread(decoder, policy))
        return
    calls = Calls()
    heartbeat.stop()  # an engine may wait for requests without end
    if environment.rank() > 0:
        follow(decoder, policy, calls)
        return
    try:
        _serve(options, token, policy, EngineThread(LeadingDecoder(decoder, calls), LeadingWeights(policy, calls)))
    finally:
        calls.send("stop")


def _serve(options: argparse.Namespace, token: str | None, policy: ServedPolicy, engine: EngineThread) -> None:
    server = EngineServer(
        engine,
        policy.tokenizer,
        name=options.served_model_name,
        vocab_size=policy.arch.vocab_size,
        max_length=policy.max_length,
        weights_folders=[options.model, *options.weights_dir],
    )
    engine.start()
    try:
        run_app(server.app(token, Hosts(options.host, options.allow_host)), host=options.host, port=options.port)
    finally:
        engine.stop()


def _parser() -> argparse.ArgumentParser:
    parser = common.serving_parser("serve-engine", "Serve a policy over HTTP with vLLM's routes.", "policy")
    parser.add_argument(
        "--weights-dir",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder below which /collective_rpc may load weights, besides --model itself; may be repeated",
    )
    parser.add_argument("--slots", type=option_types.positive, default=64, help="requests written at once; more wait")
    parser.add_argument(
        "--max-length", type=option_types.positive, help="prompt + response tokens; default: the model's own"
    )
    parser.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="record decode steps as CUDA graphs: one launch per step instead of one per kernel. Not yet measured on a GPU",
    )
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
