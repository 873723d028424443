"""Whether the Triton epilogue is on offer. (Its numbers against fp64: test_interpreted.)"""

from __future__ import annotations

import torch

from megatron_lwz.kernels.linear_logprob import triton


def test_says_why_it_cannot_run() -> None:
    reason = triton.available()
    assert (reason is None) == torch.cuda.is_available()
    assert reason in (None, "there is no GPU")
