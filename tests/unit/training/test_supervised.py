"""The batch-size ramp, epochs as steps, and what both stages refuse."""

from __future__ import annotations

import pytest
import torch

from megatron_lwz.config import validate
from megatron_lwz.config.sections import TrainingSection
from megatron_lwz.data.examples import ExampleSource
from megatron_lwz.errors import ConfigError
from megatron_lwz.training.supervised import check_supervised, sequences_of_step, with_epochs


def test_the_batch_grows_evenly_to_its_size() -> None:
    ramp = TrainingSection(sequences_per_step=10, ramp_from=2, ramp_steps=4)
    assert [sequences_of_step(ramp, step) for step in range(6)] == [2, 4, 6, 8, 10, 10]
    assert sequences_of_step(TrainingSection(sequences_per_step=10), 0) == 10


@pytest.mark.parametrize(
    ("epochs", "ramp", "steps"),
    [(None, {}, 150), (2.0, {}, 4), (1.5, {}, 3), (1.0, {"ramp_from": 1, "ramp_steps": 3}, 4)],
)
def test_epochs_become_steps(epochs: float | None, ramp: dict, steps: int) -> None:
    example = ("a", torch.zeros(2, dtype=torch.int32), torch.tensor([False, True]))
    source = ExampleSource([example] * 10, weighting="token", seed=0, shuffle=True, epochs=epochs)
    config = validate({"training": {"sequences_per_step": 5} | ramp})
    assert with_epochs(config, source.total).training.steps == steps


@pytest.mark.parametrize(
    ("training", "key"),
    [
        ({"tokens_per_micro_batch": 10, "sequence_length": 11}, "training.tokens_per_micro_batch"),
        ({"tokens_per_micro_batch": 10, "sequence_length": 10, "ramp_from": 2}, "training.ramp_steps"),
    ],
)
def test_what_cannot_run_is_refused(training: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        check_supervised(validate({"training": training}))
