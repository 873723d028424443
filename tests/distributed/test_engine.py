"""The embedded engine's ranks stay of one mind."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from tests.support.engine_model import HEAD, NORM, write_changed, write_engine_model
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


def test_weights_that_are_not_finite_are_refused_by_all_ranks_and_logits_that_are_not_too(tmp_path: Path) -> None:
    write_engine_model(tmp_path / "good")
    name = "model.layers.1.mlp.up_proj.weight"
    write_changed(tmp_path / "good", tmp_path / "bad", (name, float("inf")))
    write_changed(tmp_path / "good", tmp_path / "huge", (NORM, 1e30), (HEAD, 1e30))
    folders = {name: str(tmp_path / name) for name in ("good", "bad", "huge")}
    first, second = run_ranks("tests.distributed.checks_engine:weights_that_are_not_finite", ranks=2, **folders)
    assert first == second
    assert first["refused"].startswith(f"tensor {name} holds NaN or infinite values") and first["unchanged"]
    assert first["failed"].startswith("the policy's logits are NaN or infinite") and len(first["tokens"]) == 3


def test_a_port_that_is_taken_ends_all_ranks(tmp_path: Path) -> None:
    write_engine_model(tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        first, second = run_ranks(
            "tests.distributed.checks_engine:taken_port",
            ranks=2,
            folder=str(tmp_path / "model"),
            port=port,
            timeout=120.0,
        )
    said = (
        f"cannot listen on 127.0.0.1:{port}: another process listens there; choose another port or stop that process\n"
    )
    assert first == [2, f"error: {said}"]
    assert second == [2, f"error (rank 1): {said}"], "said after a while, in which torchrun would end this rank"
