"""Functions for a run whose trainer has a known speed: a loss that takes a set time per token, and a reward that varies."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_lwz.types import Prompt, Rollout

if TYPE_CHECKING:  # the process that scores rollouts needs neither
    from torch import Tensor

    from megatron_lwz.algorithms.grpo import LossInputs
    from megatron_lwz.config.sections import GrpoSection

SECONDS = "SECONDS_PER_TOKEN"
"""Environment variable: how long a call of the loss sleeps for each of its tokens."""


def loss(inputs: LossInputs, section: GrpoSection) -> Tensor:
    """A policy gradient. Returns the loss per token after the set time."""
    time.sleep(float(os.environ.get(SECONDS, "0")) * inputs.logprob.numel())
    return -inputs.advantage * inputs.logprob


def tokens(prompt: Prompt, rollouts: Sequence[Rollout]) -> list[float]:
    """A reward that differs within every group: the length."""
    return [float(len(rollout.tokens)) for rollout in rollouts]
