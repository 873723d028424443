"""The epilogue in plain torch, for any device and dtype. It runs where no faster implementation can."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_lwz.kernels.linear_logprob.epilogue import RowGradients

_CELLS = 2**19
"""Logits per step, so that on a CPU the two temporaries of a step stay in the cache."""


def _parts(z: Tensor) -> tuple[Tensor, ...]:
    """z [n, v] in column slices of about `_CELLS` logits each."""
    return z.split(max(256, _CELLS // len(z)), 1)


def available() -> None:
    """Returns None, because plain torch runs everywhere."""


class TorchEpilogue:
    """An `epilogue.Epilogue` in plain torch."""

    def statistics(self, z: Tensor, labels: Tensor, scale: float, running: Tensor) -> None:
        """Merges the tile into `running` [4, n], in place."""
        own = (labels >= 0) & (labels < z.shape[1])
        chosen = z.gather(1, labels.clamp(0, z.shape[1] - 1)[:, None]).squeeze(1) * scale
        running[3] += chosen.where(own, chosen.new_zeros(()))
        for part in _parts(z):
            m, s, w, _ = running
            highest = torch.maximum(m, part.amax(1).mul_(scale))
            d = torch.mul(part, scale).sub_(highest[:, None])
            e = d.exp()
            offset = m - highest
            factor = offset.exp()
            running[2] = factor * (w + s * offset) + e.mul(d).sum(1)
            running[1] = factor * s + e.sum(1)
            running[0] = highest

    def gradient(self, z: Tensor, labels: Tensor, scale: float, rows: RowGradients, dtype: torch.dtype) -> Tensor:
        """Returns dL/dz [n, v], in the memory of z if z has dtype `dtype`, else in new memory."""
        lse, mean = rows.lse[:, None], rows.mean[:, None]
        base = -rows.logprob if rows.lse_gradient is None else rows.lse_gradient - rows.logprob
        for part in _parts(z):
            part.mul_(scale)
            p = (part - lse).exp_()
            if rows.entropy is None:
                torch.mul(p, (base * scale)[:, None], out=part)
            else:
                part.sub_(mean).mul_((-scale * rows.entropy)[:, None]).add_((base * scale)[:, None]).mul_(p)
        own = ((labels >= 0) & (labels < z.shape[1])).nonzero().squeeze(1)
        z[own, labels[own]] += rows.logprob[own] * scale
        return z.to(dtype)
