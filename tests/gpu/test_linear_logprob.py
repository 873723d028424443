"""The op by the implementation that a GPU picks, against autograd in fp64."""

from __future__ import annotations

import pytest
import torch

from megatron_lwz.kernels.linear_logprob import linear_logprob

pytestmark = pytest.mark.gpu


def test_op_equals_fp64_autograd() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 256).cuda(), torch.randn(5120, 256).cuda() * 0.1
    labels = torch.randint(0, 5000, (300,)).cuda()
    inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    logprob, _, _ = linear_logprob(*inputs, labels, vocab_size=5000)
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    expected = (exact[0] @ exact[1][:5000].t()).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(logprob.double(), expected, atol=1e-4, rtol=0)
    for ours, reference in zip(
        torch.autograd.grad(logprob.sum(), inputs), torch.autograd.grad(expected.sum(), exact), strict=True
    ):
        assert (ours.double() - reference).norm() / reference.norm() < 1e-3  # TF32 may be on
