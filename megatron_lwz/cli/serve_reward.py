"""`lwz serve-reward --model DIR --port N`: a reward model over HTTP. Its token is in LWZ_REWARD_TOKEN."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from megatron_lwz.cli import common, option_types
from megatron_lwz.distributed import environment, launch
from megatron_lwz.http.hosts import Hosts
from megatron_lwz.http.ports import bind
from megatron_lwz.http.server import check_exposure, run_app
from megatron_lwz.rewards.score_server import MOST_TEXTS, ScoreServer
from megatron_lwz.rewards.scorer import ScoringThread, ServedRewardModel


def main(argv: Sequence[str]) -> None:
    """Serves until SIGINT or SIGTERM."""
    options = _parser().parse_args(list(argv))
    token = environment.get("LWZ_REWARD_TOKEN")
    check_exposure(options.host, token, "LWZ_REWARD_TOKEN")
    bind(options.host, options.port).close()  # reports a taken port at once, not after the model is loaded
    if options.threads:
        torch.set_num_threads(options.threads)
    model = ServedRewardModel(
        options.model, dtype=options.dtype, max_length=options.max_length, template=options.template
    )
    thread = ScoringThread(model, tokens_per_batch=options.tokens_per_batch, most_waiting=options.most_waiting)
    server = ScoreServer(model, thread, name=options.served_model_name)
    thread.start()
    try:
        run_app(server.app(token, Hosts(options.host, options.allow_host)), host=options.host, port=options.port)
    finally:
        thread.stop()
        launch.shutdown()


def _parser() -> argparse.ArgumentParser:
    parser = common.serving_parser("serve-reward", "Serve a reward model over HTTP.", "reward")
    parser.add_argument("--tokens-per-batch", type=option_types.positive, default=32768, help="tokens read at once")
    parser.add_argument(
        "--max-length", type=option_types.positive, help="longest text in tokens; default: the model's own"
    )
    parser.add_argument(
        "--most-waiting", type=option_types.positive, default=4 * MOST_TEXTS, help="texts that may wait; more get 503"
    )
    parser.add_argument("--template", choices=("markers", "chat"), help="default: as trained; chat for foreign models")
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
