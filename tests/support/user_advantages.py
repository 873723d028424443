"""Advantage functions as a user would write them, and some that must not run."""

import torch


def builtin(columns):
    """The house's own maths (zscore, combine: advantages), [P, G, R]."""
    present = columns.valid & columns.included.unsqueeze(-1)
    share = present * columns.weights
    share = share / share.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    count = present.sum(1, keepdim=True).clamp(min=1)
    centred = (columns.rewards - (columns.rewards * present).sum(1, keepdim=True) / count) * present
    return centred / ((centred.square().sum(1, keepdim=True) / count).sqrt() + 1e-6) * share


def builtin_total(columns):
    return builtin(columns).sum(-1)


def of_length_alone(columns):
    """[P, G], not a number where a rollout takes no part."""
    rewards = columns.rewards[..., columns.names.index("length")]
    return (rewards - rewards.mean(1, keepdim=True)).where(columns.included, torch.nan)


def meddles(columns):
    found = builtin(columns)
    for values in (columns.rewards, columns.valid, columns.included, columns.truncated, columns.weights):
        values.zero_()
    return found


def fails_above_one(columns):
    if (columns.rewards > 1).any():
        raise KeyError("above\none")
    return builtin(columns)


def infinite_above_one(columns):
    return builtin(columns) / (columns.rewards <= 1).all(-1, keepdim=True).double()


def whitened_over_the_batch(columns):
    total = builtin_total(columns)
    return total / (total.std() + 1e-6)


def noisy(columns):
    return builtin_total(columns) + torch.rand(columns.included.shape)


def without_floor(columns):
    total = (columns.rewards * columns.valid).sum(-1)
    return (total - total.mean(1, keepdim=True)) / total.std(1, keepdim=True)


def over_the_others(columns):
    taken = columns.included.double()
    total = (columns.rewards * columns.valid).sum(-1) * taken
    others = taken.sum(1, keepdim=True) - 1
    return total - (total.sum(1, keepdim=True) - total) / others


def leave_one_out(columns):
    """The mean of the others, off by an ulp for equal rewards under weights that are no binary fractions."""
    total = (columns.rewards * columns.valid * columns.weights).sum(-1) * columns.included
    others = (columns.included.sum(1, keepdim=True) - 1).clamp(min=1)
    return total - (total.sum(1, keepdim=True) - total) / others


def in_fp32(columns):
    total = (columns.rewards * columns.valid).sum(-1).float()
    return total - (total / 3 + total / 3 + total / 3 + 1e-7)


def wrong_shape(columns):
    return builtin_total(columns)[:, :-1]


def whole_numbers(columns):
    return builtin_total(columns).long()


def a_list(columns):
    return builtin_total(columns).tolist()


def raises(columns):
    return columns.scores
