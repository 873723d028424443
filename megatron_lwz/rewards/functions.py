"""Reward components of the user's own: Python functions named in the config.

    # my_rewards.py
    from collections.abc import Sequence
    from megatron_lwz.types import Prompt, Rollout

    def no_exclamation_marks(prompt: Prompt, rollouts: Sequence[Rollout]) -> Sequence[float | None]:
        # one number for each rollout, in order; None for no score
        return [float("!" not in rollout.text) for rollout in rollouts]

`reward.functions: [my_rewards:no_exclamation_marks]`, or with settings `{path: …, name: …, weight: 0.5, normalizer:
range}`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Sequence
from typing import Any

from megatron_lwz.config.sections import FunctionReward
from megatron_lwz.types import ComponentScore, Prompt, Rollout
from megatron_lwz.user_functions import load_function

logger = logging.getLogger(__name__)

KEY = "reward.functions"


class FunctionComponent:
    """A user's `package.module:function`: plain or async, `(prompt, rollouts) -> [float or None, …]`.

    None, or a number that cannot be a score (`types.is_score`), masks that rollout's score. An exception masks the
    scores of the whole group and is logged.
    """

    def __init__(self, section: FunctionReward) -> None:
        """Imports the function. Raises ConfigError."""
        self._function = load_function(KEY, section.path)
        self.name = section.title

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        """Returns one score per rollout.

        A plain function runs in a thread, so that it does not block the rollouts' streams.
        """
        try:
            if inspect.iscoroutinefunction(self._function):
                values = await self._function(prompt, rollouts)
            else:
                values = await asyncio.to_thread(self._function, prompt, rollouts)
            scores = [_to_score(value) for value in values]
            if len(scores) != len(rollouts):
                raise ValueError(f"{len(scores)} scores for {len(rollouts)} rollouts")
        except Exception as error:  # an error of a user's function masks its own column and does not stop the run
            logger.warning("reward %s failed on prompt %s, masked: %r", self.name, prompt.id, error)
            return [ComponentScore(0.0, valid=False) for _ in rollouts]
        return scores


def _to_score(value: Any) -> ComponentScore:
    if value is None:
        return ComponentScore(0.0, valid=False, version="function")
    try:
        return ComponentScore(float(value), version="function")
    except OverflowError:  # an int that no float holds
        return ComponentScore(math.inf, version="function")
