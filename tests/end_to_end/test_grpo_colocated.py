"""The main job with an engine that sleeps while it trains: the same numbers as without, on one rank and on two."""

from pathlib import Path

import pytest

from megatron_lwz.metrics import read_metrics
from tests.end_to_end.grpo_runs import train, write_example

pytestmark = pytest.mark.long

COMPARED = ("loss", "grad_norm", "reward", "rollout/tokens", "lr")


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
    assert together == apart and {"loss", "grad_norm"} <= apart[0].keys()
