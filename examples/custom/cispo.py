"""CISPO (MiniMax-M1, arXiv 2506.13585) as a loss function of one's own: `grpo.loss_function: examples.custom.cispo:cispo`."""

from torch import Tensor

from megatron_lwz.algorithms.grpo import LossInputs
from megatron_lwz.config.sections import GrpoSection


def cispo(inputs: LossInputs, section: GrpoSection) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped ratio, without gradient, weights the log-prob, so that no token is left out."""
    ratio = (inputs.logprob - inputs.old).exp().detach()
    weight = ratio.clamp(1 - section.clip_low, 1 + section.clip_high)
    loss = -weight * inputs.advantage * inputs.logprob
    return loss, {"clipped": weight != ratio}
