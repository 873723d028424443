"""`torchrun --nproc-per-node N -m megatron_lwz.cli.score CONFIG --input tokens.jsonl --output logprobs.jsonl`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_lwz.cli import common, option_types
from megatron_lwz.distributed import launch
from megatron_lwz.training.token_logprobs import policy_of, write_logprobs


def main(argv: Sequence[str]) -> None:
    """Writes log-probs of given tokens. CONFIG is a config file, a converted checkpoint, or a run folder (its newest checkpoint)."""
    parser = common.parser("Log-probs and entropies of given tokens.")
    parser.add_argument("--input", type=Path, required=True, help='JSONL rows {"id", "tokens", "prompt_length"}')
    parser.add_argument("--output", type=Path, required=True, help='JSONL rows {"id", "logprobs", "entropies"}')
    parser.add_argument(
        "--temperature", type=option_types.positive_number, default=1.0, help="divides the logits; default 1"
    )
    config, options = common.parse(parser, argv)
    if options.temperature <= 0:
        raise common.UsageError(f"--temperature {options.temperature}: must be above 0")
    common.check_writable(options.output, "--output")
    config = policy_of(config, options.config)
    try:
        count = write_logprobs(config, options.input, options.output, temperature=options.temperature)
    finally:
        launch.shutdown()
    common.console().print(f"{count} rows scored: {options.output}")


if __name__ == "__main__":
    sys.exit(common.run(main))
