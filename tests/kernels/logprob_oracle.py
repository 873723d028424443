"""A problem for the log-prob op, and fp64 autograd on its whole logits: what every implementation is compared with."""

from __future__ import annotations

import torch

from megatron_lwz.kernels.linear_logprob import AutogradTokenLoss
from megatron_lwz.types import IGNORED_LABEL


def problem(rows=37, hidden=24, vocab=1003, padded=1024, seed=0, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, hidden, generator=generator, dtype=torch.float64) * scale
    w = torch.randn(padded, hidden, generator=generator, dtype=torch.float64)
    if shift:  # one constant feature moves every logit
        x[:, 0], w[:, 0] = 1.0, shift
    labels = torch.randint(0, vocab, (rows,), generator=generator)
    labels[::5] = IGNORED_LABEL
    upstream = torch.randn(3, rows, generator=generator, dtype=torch.float64)
    return x, w, labels, upstream


def oracle(x, w, labels, upstream, *, vocab, temperature):
    """log_softmax on whole fp64 logits."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    kept = labels != IGNORED_LABEL
    z = x @ w[:vocab].t() / temperature
    logp = z.log_softmax(-1)
    outputs = (
        torch.stack(
            [
                logp.gather(1, labels.clamp(min=0)[:, None])[:, 0],
                -(logp.exp() * logp).sum(-1),
                z.logsumexp(-1),
            ]
        )
        * kept
    )
    (outputs * upstream).sum().backward()
    return outputs.detach(), x.grad, w.grad


def relative(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


def weighted(upstream):
    """Mode B's loss with the same gradients as `run`."""
    weights = upstream.float()

    def loss(logprob, entropy, lse, rows):
        return (torch.stack([logprob, entropy, lse]) * weights[:, rows].to(logprob.dtype)).sum()

    return AutogradTokenLoss(loss, upstream.shape[1])
