"""Reward functions as a user would write them."""


def words(prompt, rollouts):
    return [float(len(r.text.split())) for r in rollouts]


async def holes(prompt, rollouts):
    return [1, None, float("nan"), 0.25][: len(rollouts)]


def huge(prompt, rollouts):
    return [1e39, -2e12, 10**400, 1e12][: len(rollouts)]


def broken(prompt, rollouts):
    raise RuntimeError("no")


def short(prompt, rollouts):
    return [1.0]


def length(prompt, rollouts):
    return [0.0] * len(rollouts)


NOT_A_FUNCTION = 3
