"""Prompts, rollouts and scores in one line each."""

import asyncio

from megatron_lwz.types import FinishReason, LengthRange, Prompt, Rollout


def prompt(lower=None, upper=None, template="think"):
    return Prompt("p1", "Write.", None if lower is None else LengthRange(lower, upper), template=template)


def rollout(text, *, finish=FinishReason.STOP, stop=None, index=0):
    return Rollout(f"r{index}", "p1", index, (), (), (), (), finish, text, stop)


def score(component, prompt_, *rollouts):
    return list(asyncio.run(component.score(prompt_, rollouts)))


def longest(prompt, rollouts):
    """A reward function for `reward.functions`."""
    return [float(len(rollout.text)) for rollout in rollouts]
