"""`lwz serve-reward --model DIR --port N`: a reward model over HTTP, or a frozen language model. Its token is in LWZ_REWARD_TOKEN."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from megatron_lwz.cli import common, option_types
from megatron_lwz.distributed import environment, launch
from megatron_lwz.http.hosts import Hosts
from megatron_lwz.http.ports import bind
from megatron_lwz.http.server import check_exposure, run_app
from megatron_lwz.rewards.score_server import MOST_TEXTS, LikelihoodServer, ModelServer, ScoreServer
from megatron_lwz.rewards.scorer import ScoringThread
from megatron_lwz.rewards.served_model import ServedLanguageModel, ServedRewardModel


def main(argv: Sequence[str]) -> None:
    """Serves until SIGINT or SIGTERM."""
    parser = _parser()
    options = parser.parse_args(list(argv))
    if options.template == ("markers" if options.likelihood else "text"):
        kind = "with" if options.likelihood else "without"
        parser.error(f"argument --template: {options.template} has no meaning {kind} --likelihood")
    token = environment.get("LWZ_REWARD_TOKEN")
    check_exposure(options.host, token, "LWZ_REWARD_TOKEN")
    bind(options.host, options.port).close()  # reports a taken port at once, not after the model is loaded
    if options.threads:
        torch.set_num_threads(options.threads)
    server, thread = _server(options)
    thread.start()
    try:
        run_app(server.app(token, Hosts(options.host, options.allow_host)), host=options.host, port=options.port)
    finally:
        thread.stop()
        launch.shutdown()


def _server(options: argparse.Namespace) -> tuple[ModelServer[Any], ScoringThread[Any]]:
    limits = {"tokens_per_batch": options.tokens_per_batch, "most_waiting": options.most_waiting}
    sizes = {"dtype": options.dtype, "max_length": options.max_length}
    name, template = options.served_model_name, options.template
    if options.likelihood:
        frozen = ServedLanguageModel(options.model, **sizes)
        reads = ScoringThread(frozen, **limits)
        return LikelihoodServer(frozen, reads, name=name, template=template or "text"), reads
    model = ServedRewardModel(options.model, template=template, **sizes)
    thread = ScoringThread(model, **limits)
    return ScoreServer(model, thread, name=name), thread


def _parser() -> argparse.ArgumentParser:
    parser = common.serving_parser("serve-reward", "Serve a reward model over HTTP.", "reward")
    parser.add_argument("--tokens-per-batch", type=option_types.positive, default=32768, help="tokens read at once")
    parser.add_argument(
        "--max-length", type=option_types.positive, help="longest text in tokens; default: the model's own"
    )
    parser.add_argument(
        "--most-waiting", type=option_types.positive, default=4 * MOST_TEXTS, help="texts that may wait; more get 503"
    )
    parser.add_argument(
        "--likelihood",
        action="store_true",
        help="serve a language model that tells how likely a continuation is (reward.continuation)",
    )
    parser.add_argument(
        "--template",
        choices=("markers", "chat", "text"),
        help="input format; default: as trained, chat for foreign models; text or chat with --likelihood, default text",
    )
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
