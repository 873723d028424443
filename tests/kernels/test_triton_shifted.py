"""Logits stored in bf16 around a shift: how far off log-probs and gradients are."""

from __future__ import annotations

from tests.kernels.interpreter import run_interpreted


def test_through_the_interpreter() -> None:
    run_interpreted("tests/kernels/interpreted_triton_shifted.py")
