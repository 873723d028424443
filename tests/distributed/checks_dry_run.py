"""Worker side of test_dry_run: what a rank really holds."""

from __future__ import annotations

import dataclasses
import io
from contextlib import redirect_stderr
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_lwz.cli import common, train_grpo
from megatron_lwz.config import Stage, validate
from megatron_lwz.distributed import environment, launch
from megatron_lwz.kernels.linear_logprob import products
from megatron_lwz.models import attention
from megatron_lwz.planner.device import measure
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


def measured(trees: dict[str, dict[str, Any]], stage: Stage) -> dict[str, dict[str, Any]]:
    """Name → what this rank took for a step, as `--dry-run device` measures it: bytes of its state, and by instant.

    By operations that a plan in fp32 has too: torch's plain attention (a CPU's fused one keeps other tensors for the backward
    pass), with a mask where context parallelism splits a sequence, and products into the given output (oneDNN's, on some
    processors, make a tensor of that size besides).
    """
    products.mkl_leaves_avx512 = lambda: False
    attention.attend_suffix = _masked
    found = {}
    for name, tree in trees.items():
        with sdpa_kernel(SDPBackend.MATH):
            mine = measure(validate(tree), stage)[environment.rank()]
        found[name] = {"state": mine.state, "instants": mine.instants}
    return found


def _masked(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(k.shape[2] - q.shape[2] + 1)
    return attention.attend(q, k, v, scale=scale, hidden=hidden)


def refused(argv: list[str]) -> tuple[int, str]:
    """The exit status of a GRPO stage that cannot be run, and what it said on stderr."""
    with redirect_stderr(io.StringIO()) as said:
        return common.run(train_grpo.main, argv), said.getvalue()
