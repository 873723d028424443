"""The embedded engine's decoder on the fake device: prompts, then steps that are recorded as a CUDA graph."""

from __future__ import annotations

from typing import Any

from megatron_lwz.models.decoding import Decoder
from megatron_lwz.models.decoding_cache import CachedSequence
from megatron_lwz.models.decoding_graph import RECURRENCES
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.rehearsal.device import FakeDevice

PROMPT, SEQUENCES, REPLAYED = 40, 3, 5
"""Tokens of each prompt, number of sequences, and steps that are replayed."""


def rehearse_decoding(policy: PolicyModel, device: FakeDevice) -> dict[str, Any]:
    """Writes tokens with a policy. Notes `steps`: decode steps, the replayed ones included.

    Phases: `prompts`, `decode`. Which tokens are drawn does not matter to what runs.
    """
    decoder = Decoder(policy, max_length=1024, slots=SEQUENCES, graphs=True)
    device.assumed_integer = 0
    for seed in range(SEQUENCES):
        decoder.add(CachedSequence(tuple(range(PROMPT)), seed=seed))
    with device.ledger.during("prompts"):
        decoder.step()
    steps = RECURRENCES + REPLAYED
    with device.ledger.during("decode"):
        for _ in range(steps):
            decoder.step()
    return {"steps": steps}
