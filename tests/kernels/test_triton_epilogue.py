"""The Triton epilogue without a GPU: against fp64 through the interpreter, and whether it is on offer."""

from __future__ import annotations

import torch

from megatron_lwz.kernels.linear_logprob import triton
from tests.kernels.interpreter import run_interpreted


def test_through_the_interpreter() -> None:
    run_interpreted("tests/kernels/interpreted_triton_epilogue.py")


def test_says_why_it_cannot_run() -> None:
    reason = triton.available()
    assert (reason is None) == torch.cuda.is_available()
    assert reason in (None, "there is no GPU")
