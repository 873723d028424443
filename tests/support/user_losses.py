"""Policy losses as a user would write them: the built-in ones, and ones that cannot be."""

import torch


def clip(inputs, section):
    ratio = (inputs.logprob - inputs.old).exp()
    clipped = ratio.clamp(1 - section.clip_low, 1 + section.clip_high)
    return -torch.minimum(ratio * inputs.advantage, clipped * inputs.advantage)


def gspo(inputs, section, sequence_mean):
    """In the token form: the gradient of a token's own log-prob."""
    log_ratio = sequence_mean((inputs.logprob - inputs.old).detach())
    ratio = (log_ratio + inputs.logprob - inputs.logprob.detach()).exp()
    clipped = ratio.clamp(1 - section.clip_low, 1 + section.clip_high)
    return -torch.minimum(ratio * inputs.advantage, clipped * inputs.advantage)


def gspo_through_the_mean(inputs, section, sequence_mean):
    """The ratio with its own gradient, over all tokens of the sequence."""
    ratio = sequence_mean(inputs.logprob - inputs.old).exp()
    clipped = ratio.clamp(1 - section.clip_low, 1 + section.clip_high)
    return -torch.minimum(ratio * inputs.advantage, clipped * inputs.advantage), {"ratio": ratio}


def sequence_cispo(inputs, section, sequence_mean):
    weight = sequence_mean(inputs.logprob.detach() - inputs.old).exp()
    return -weight.clamp(1 - section.clip_low, 1 + section.clip_high) * inputs.advantage * inputs.logprob


def clip_with_k2(inputs, section):
    kl = (inputs.logprob - inputs.reference).square() / 2
    return clip(inputs, section) + section.kl_coefficient * kl


def clip_with_entropy(inputs, section):
    return clip(inputs, section) - 0.03 * inputs.entropy


def takes_one(inputs):
    return -inputs.logprob


def raises(inputs, section):
    return -inputs.logprob * inputs.rewards


def scalar(inputs, section):
    return (-inputs.logprob * inputs.advantage).mean()


def number(inputs, section):
    return 0.5


def three(inputs, section):
    return -inputs.logprob, {}, {}


def double(inputs, section):
    return -inputs.logprob.double()


def detached(inputs, section):
    return -inputs.logprob.detach() * inputs.advantage


def infinite(inputs, section):
    return inputs.logprob / inputs.advantage


def infinite_gradient(inputs, section):
    return (inputs.logprob - inputs.old).abs().sqrt()


def whitened(inputs, section):
    advantage = inputs.advantage - inputs.advantage.mean()
    return -advantage * inputs.logprob


def whitened_sequences(inputs, section, sequence_mean):
    mean = sequence_mean(inputs.advantage)
    return -(mean - mean.mean()) * inputs.logprob


def fails_without_tokens(inputs, section):
    return -inputs.logprob * inputs.advantage / (1 + 0 * inputs.entropy.max())


def metric_of_another_shape(inputs, section):
    return -inputs.logprob, {"mean": inputs.entropy.mean()}


def metric_with_a_slash(inputs, section):
    return -inputs.logprob, {"share/max": inputs.entropy}


def metric_that_is_not_finite(inputs, section):
    return -inputs.logprob, {"inverse": 1 / inputs.advantage}


def metrics_that_change(inputs, section):
    return -inputs.logprob, {f"tokens_{len(inputs.logprob)}": inputs.entropy}


def differentiates_in_the_forward_pass(inputs, section):
    inputs.logprob.register_hook(lambda gradient: gradient)
    return -inputs.logprob * inputs.advantage


def no_mean_without_tokens(inputs, section, sequence_mean):
    if not len(inputs.logprob):
        return -inputs.logprob
    return -sequence_mean(inputs.logprob) * inputs.advantage


def of_probabilities(inputs, section):
    """Finite for log-probs below 0 alone."""
    scale = (1 - inputs.behaviour.exp()).sqrt() + (1 - inputs.old.exp()).log() + (1 - inputs.reference.exp()).log()
    return -inputs.logprob * inputs.advantage * scale.exp()


NOT_A_FUNCTION = 3


def endless_slope(inputs, section):
    """A finite loss whose gradient is infinite where the advantage is large."""
    root = torch.where(inputs.advantage > 50, inputs.logprob - inputs.logprob.detach(), 1.0).sqrt()
    return -inputs.advantage * inputs.logprob + root
