"""The embedded engine's ranks stay of one mind."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.engine_model import write_engine_model
from tests.support.ranks import run_ranks


def test_a_folder_that_one_rank_cannot_load_changes_no_rank(tmp_path: Path) -> None:
    for seed, name in enumerate(("good", "other")):
        write_engine_model(tmp_path / name, seed=seed)
    shutil.copytree(tmp_path / "other", tmp_path / "bad")
    weights = tmp_path / "bad" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    folders = {name: str(tmp_path / name) for name in ("good", "other", "bad")}
    first, second = run_ranks("tests.distributed.checks_engine:reload_on_one_rank", ranks=2, **folders)
    assert first == second
    assert "model.safetensors is damaged or truncated" in first[0] and first[1] == first[2]
