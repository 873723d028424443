"""The embedded engine for an evaluation.

It serves a Hugging Face folder, a run folder or a checkpoint inside a block.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_lwz.config import Architecture, load_config, read_hf_architecture
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.distributed import environment
from megatron_lwz.errors import CheckpointError
from megatron_lwz.http.process import ServerProcess
from megatron_lwz.rollout.engine.process import engine_process
from megatron_lwz.run_paths import RunPaths, with_config

START_SECONDS = 600.0


@contextmanager
def serving(folder: Path, log_path: Path, *, slots: int, dtype: str, threads: int) -> Iterator[ServerProcess]:
    """Starts an engine that serves `folder` and stops when the block ends.

    Raises EngineError when it does not start.
    """
    server = engine_process(folder, slots=slots, dtype=dtype, threads=threads, log_path=log_path)
    server.start()
    try:
        server.wait_ready(START_SECONDS)
        yield server
    finally:
        server.stop()


def identity(model: Path) -> str:
    """Returns a name that changes with the weights: a run folder with a newer checkpoint counts as another model."""
    patterns = ("*.safetensors", "*.distcp", "checkpoints/latest")
    files = sorted(path for pattern in patterns for path in model.glob(pattern))
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{model.name}@{hashlib.sha256(repr(stamps).encode()).hexdigest()[:12]}"


def sizes_of(model: Path) -> tuple[Architecture, Tokenizer, str]:
    """Returns the architecture and the tokenizer of `model`, and where the architecture stands. Reads no weights.

    Raises LwzError, also when `model` is neither a Hugging Face folder nor a checkpoint.
    """
    run = _run_of(model)
    if run is None:
        return read_hf_architecture(model), Tokenizer(model), str(model / "config.json")
    config = load_config(run)
    return config.architecture(), Tokenizer(config.tokenizer_dir()), str(RunPaths(run).config)


@contextmanager
def servable(model: Path, work: Path) -> Iterator[Path]:
    """Yields `model` as a Hugging Face folder: itself, or an export of the checkpoint.

    The export lies under `work` and is deleted when the block ends. Raises CheckpointError when `model` is neither.
    """
    if _run_of(model) is None:
        yield model
        return
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="export-", dir=work) as folder:
        target = Path(folder) / "hf"
        command = [sys.executable, "-m", "megatron_lwz.cli.evaluate_export", str(model), str(target)]
        done = subprocess.run(
            command, env=environment.child_environment(), capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1].removeprefix("error: ")
            raise CheckpointError(model, f"cannot be exported: {said}")
        yield target


def _run_of(model: Path) -> Path | None:
    """Returns the folder with the config.yaml of a checkpoint or run folder, None for a Hugging Face folder.

    Raises CheckpointError if it is none of these.
    """
    if (model / "config.json").is_file() and list(model.glob("*.safetensors")):
        return None
    if not model.is_dir():
        raise CheckpointError(model, "no such folder: name a Hugging Face folder, a run folder or a checkpoint")
    if (found := with_config(model)) is None:
        advice = "neither a Hugging Face folder nor a checkpoint: no config.yaml here or in a run above"
        raise CheckpointError(model, advice)
    return found
