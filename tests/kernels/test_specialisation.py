"""The kernels of the GRPO loss are compiled once: not again for a micro-batch of another length or alignment."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import create_function_from_signature

from megatron_lwz.config.sections import GrpoSection
from megatron_lwz.kernels.grpo_loss import kernels, launch
from megatron_lwz.kernels.grpo_loss.launch import TokenInputs
from tests.kernels.ahead_of_time import SM_90

LENGTHS = (1, 16, 17, 4096, 4097)


class Launches:
    """Takes the place of a kernel and keeps what Triton looks a compiled variant up by."""

    def __init__(self, kernel: triton.JITFunction) -> None:
        self._bind = create_function_from_signature(kernel.signature, kernel.params, CUDABackend(SM_90))
        self.variants: set[str] = set()

    def __getitem__(self, _grid: object) -> Any:
        return lambda *arguments, **options: self.variants.add(str(self._bind(*arguments, **options)[1:]))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> tuple[Launches, Launches]:
    found = Launches(kernels.token_loss), Launches(kernels.sequence_sums)
    monkeypatch.setattr(kernels, "token_loss", found[0])
    monkeypatch.setattr(kernels, "sequence_sums", found[1])
    return found


def inputs(tokens: int) -> TokenInputs:
    """Rows of a table, so their alignment depends on the length."""
    old, behaviour, reference, advantage, weight = torch.zeros(6, tokens)[1:]
    return TokenInputs(old=old, behaviour=behaviour, reference=reference, advantage=advantage, weight=weight)


def section(**options: Any) -> GrpoSection:
    return GrpoSection.model_validate({"kl_coefficient": 0.1} | options)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_per_token(launches: tuple[Launches, Launches], tokens: int) -> None:
    for rows in LENGTHS:
        chosen = torch.zeros(rows + 1, dtype=torch.int64)[1:]
        launch.token_loss(torch.zeros(2, 4, rows), inputs(tokens), section(), rows=chosen)
    launch.token_loss(torch.zeros(2, 4, 32), inputs(32), section(), rows=torch.zeros(32, dtype=torch.int64))
    assert len(launches[0].variants) == 1


def test_per_sequence(launches: tuple[Launches, Launches]) -> None:
    def means(tokens: int, sequences: int) -> None:
        ids = torch.zeros(tokens, dtype=torch.int64)
        logprob: Tensor = torch.zeros(tokens)
        options = section(ratio="sequence", mismatch="sequence")
        found = launch.sequence_means(
            logprob, inputs(tokens), options, ids=ids, sequences=sequences, context_sum=lambda sums: sums
        )
        launch.token_loss(logprob, inputs(tokens), options, entropy=logprob, means=found)

    for tokens in LENGTHS:
        for sequences in (1, 3, 16):
            means(tokens, sequences)
    assert [len(kernel.variants) for kernel in launches] == [1, 1]
