"""The main job with an engine that sleeps while it trains: the numbers of one that does not, on one rank and on two."""

from pathlib import Path

import pytest

from megatron_lwz.metrics import read_metrics
from tests.support.grpo_runs import train, write_example

pytestmark = pytest.mark.long

COMPARED = ("loss", "grad_norm", "rollout/tokens", "lr")


def losses(folder: Path, *, colocated: bool, ranks: int) -> list[dict[str, float]]:
    folder.mkdir()
    config = write_example(folder, rollout={"colocated": colocated}, evaluation={"interval": 2})
    train(config, ranks=ranks)
    rows = read_metrics(folder / "run" / "metrics.jsonl")
    assert len(rows) == 4
    return [{name: row[name] for name in COMPARED if name in row} for row in rows]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_trainer_that_takes_turns_with_its_engine_trains_the_same(tmp_path: Path, ranks: int) -> None:
    apart = losses(tmp_path / "apart", colocated=False, ranks=ranks)
    together = losses(tmp_path / "together", colocated=True, ranks=ranks)
    for row, expected in zip(together, apart, strict=True):
        assert {"loss", "grad_norm"} <= expected.keys()
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)  # an engine's last bits follow the order of requests
