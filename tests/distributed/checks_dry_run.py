"""Worker side of test_dry_run: what a rank really holds."""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_lwz.config import validate
from megatron_lwz.distributed import launch
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.state_bytes import state_bytes


def held(trees: dict[str, dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Name → bytes of the tensors that this rank allocated under that config."""
    found = {}
    for name, tree in trees.items():
        config = validate(tree)
        launch.initialize(config)
        found[name] = dataclasses.asdict(state_bytes(build_train_state(config)))
    return found
