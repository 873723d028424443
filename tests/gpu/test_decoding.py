"""Decode steps that are recorded as CUDA graphs write what others write, and how long both take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_lwz.distributed import launch
from megatron_lwz.models.decoding import Decoder
from megatron_lwz.models.decoding_cache import CachedSequence
from megatron_lwz.models.decoding_graph import RECURRENCES
from megatron_lwz.rollout.engine.policy import ServedPolicy
from tests.support.engine_model import VOCAB, write_engine_model

pytestmark = pytest.mark.gpu
PROMPT, SEQUENCES = 40, 6


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPolicy]:
    folder: Path = tmp_path_factory.mktemp("engine")
    write_engine_model(folder, hidden=512, layers=8)
    yield ServedPolicy(folder, dtype="bf16")
    launch.shutdown()


def write(decoder: Decoder, steps: int) -> tuple[dict[int, list[int]], float]:
    """Returns the tokens by seed, and the seconds of a step. Sequences end at different lengths, and one comes later."""
    prompts = torch.randint(0, VOCAB, (SEQUENCES, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
    waiting = [CachedSequence(tuple(prompt), seed=seed) for seed, prompt in enumerate(prompts)]
    written: dict[int, list[int]] = {sequence.seed: [] for sequence in waiting}
    last = waiting.pop()
    for sequence in waiting:
        decoder.add(sequence)
    began = time.perf_counter()
    for step in range(steps):
        if step == steps // 2:
            decoder.add(last)
        for sampled in decoder.step():
            tokens = written[sampled.sequence.seed]
            tokens.append(sampled.token)
            if len(tokens) == steps // (1 + sampled.sequence.seed % 3):
                decoder.remove(sampled.sequence)
    seconds = (time.perf_counter() - began) / steps
    for sequence in (*waiting, last):
        decoder.remove(sequence)
    return written, seconds


def test_recorded_steps_write_the_same_tokens(policy: ServedPolicy, capsys: pytest.CaptureFixture[str]) -> None:
    steps = 700  # past the first bucket of 512 tokens
    plain, recorded = policy.decoder(SEQUENCES), policy.decoder(SEQUENCES, graphs=True)
    write(plain, 50)  # compiles
    (wanted, plain_seconds), (found, seconds) = write(plain, steps), write(recorded, steps)
    assert found == wanted
    assert recorded._recorder is not None and recorded._recorder.replays > steps - 20 * RECURRENCES
    with capsys.disabled():
        print(f"\na decode step, 8 layers x 512, bf16: recorded / plain {seconds / plain_seconds:.2f}")


def test_weights_that_slept_are_found_again(policy: ServedPolicy) -> None:
    decoder = policy.decoder(SEQUENCES, graphs=True)
    before, _ = write(decoder, 60)
    decoder.release()
    policy.leave(keep=True)
    taken = torch.zeros(2**20, device="cuda")  # the weights cannot come back to where they were
    policy.come_back()
    assert write(decoder, 60)[0] == before
    del taken
