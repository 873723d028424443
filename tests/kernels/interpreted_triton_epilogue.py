"""The Triton epilogue through the interpreter. Run by test_interpreted, in a process of its own."""

from __future__ import annotations

from megatron_lwz.kernels.linear_logprob import triton
from tests.support.triton_epilogue_checks import TritonEpilogueChecks


class TestInterpreted(TritonEpilogueChecks):
    bf16_tolerance = 6e-3  # the interpreter cuts fp32 down to bf16 where a GPU rounds

    def test_the_interpreter_is_on(self):
        assert triton.interpreted() and triton.available() is None
