"""A rank that initializes, meets the others, and at torchrun's first start is killed: `python -m … FOLDER` under torchrun."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.distributed import environment, exchange, launch

ARCHITECTURE = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64,
}  # fmt: skip


def main() -> None:
    restart = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0") or 0)
    config = {"model": {"architecture": ARCHITECTURE}, "parallel": {"tensor": 2}, "run": {"dir": "unused"}}
    launch.initialize(Config.model_validate(config))
    ranks = exchange.largest(environment.rank()) + 1
    if restart == 0 and environment.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    exchange.largest(0.0)
    Path(sys.argv[1], f"{environment.rank()}.txt").write_text(f"restart {restart} of {ranks:g} ranks")
    launch.shutdown()


if __name__ == "__main__":
    main()
