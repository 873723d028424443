"""What a node looks at before its part of a launch begins. Each check raises an LwzError that says what to do."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.data import start_check
from megatron_lwz.errors import ConfigError, EnvironmentSetupError
from megatron_lwz.http.ports import bind
from megatron_lwz.launch.description import with_engines
from megatron_lwz.planner.engines import parameters
from megatron_lwz.run_paths import STEPS, RunPaths
from megatron_lwz.units import GIB
from megatron_lwz.writing import naming, write_text

STATE_BYTES, WEIGHT_BYTES = 14, 2
"""Bytes per parameter of a checkpoint (bf16 weights, fp32 masters and moments), and of an exported folder."""
SHARED_WITHIN = 120.0
"""Seconds within which all nodes must see each other's files."""


def check_files(config: Config) -> None:
    """Files that the stage reads, the layout, and lengths: model, tokenizer and context fit each other."""
    section = config.launch
    for key, path in _inputs(config):
        if not Path(path).exists():
            raise ConfigError(key, path, f"is not there on {socket.gethostname()}: every node must see it")
    config.check_layout(section.nodes * section.ranks)
    if section.stage == "train_grpo":
        with_engines(config).check_grpo()
        start_check.check_rollouts(config)
    elif section.stage == "pretrain":
        start_check.check_corpus(config)
    else:
        start_check.check_texts(config)


def _inputs(config: Config) -> Iterator[tuple[str, str]]:
    """Yields key and path of what the stage reads."""
    given: dict[str, object] = {"model.hf": config.model.hf, "model.tokenizer": config.model.tokenizer}
    given["checkpoint.load"] = config.checkpoint.load
    match config.launch.stage:
        case "train_grpo":
            given["data.prompts"], given["data.held_out_prompts"] = config.data.prompts, config.data.held_out_prompts
            for name in ("writing", "continuation"):
                served = getattr(config.reward, name)
                given[f"reward.{name}.hf"] = None if served.url else served.hf
        case "pretrain":
            given["data.corpus"] = config.data.corpus
        case "train_sft":
            given["data.instructions"] = config.data.instructions
        case "train_reward_model":
            given["reward_model.pairs"] = config.reward_model.pairs
            given["reward_model.held_out"] = config.reward_model.held_out
        case "train_dpo":
            given["dpo.pairs"], given["dpo.held_out"] = config.dpo.pairs, config.dpo.held_out
    for key, value in given.items():
        paths = value if isinstance(value, (tuple, list)) else (value,)
        yield from ((key, path) for path in paths if isinstance(path, str))


def check_ports(config: Config, *, first: bool, engines: bool) -> None:
    """The port of the rendezvous on the first node, and those of this node's engines, are free."""
    section = config.launch
    if first and section.nodes > 1:
        bind("0.0.0.0", section.port).close()
    if engines:
        for index in range(section.engines.per_node):
            bind("0.0.0.0" if section.engines.nodes else "127.0.0.1", section.engines.port + index).close()


def check_engine_command(config: Config) -> None:
    """vLLM's command is there."""
    if config.rollout.engine == "vllm" and shutil.which(command := config.launch.engines.command) is None:
        advice = f"is no program on {socket.gethostname()}: install vLLM there (docs/vllm.md), or name its command"
        raise ConfigError("launch.engines.command", command, advice)


def check_gpus(config: Config) -> None:
    """This node has the GPUs that the launch counts on."""
    asked = config.launch.gpus_per_node
    if not asked:
        return
    import torch

    found = torch.cuda.device_count()
    if found < asked:
        advice = f"{socket.gethostname()} has {found} that torch can use: lwz doctor says more"
        raise ConfigError("launch.gpus_per_node", asked, advice)


def check_room(config: Config) -> None:
    """The disk of the run folder has room for the checkpoints that are still to come, and for an export or two."""
    run = RunPaths(config.run.dir)
    place = next(folder for folder in (run.root.absolute(), *run.root.absolute().parents) if folder.is_dir())
    there = len(list(run.checkpoints.glob(STEPS)))
    checkpoints = max(0, config.checkpoint.keep - there) + 1  # the next one is written before the oldest one goes
    exports = 2 if config.launch.stage == "train_grpo" else 1
    needed = parameters(config.architecture()) * (checkpoints * STATE_BYTES + exports * WEIGHT_BYTES)
    free = shutil.disk_usage(place).free
    if free < needed:
        advice = (
            f"{free / GIB:.1f} GiB are free in {place}, {checkpoints} checkpoints and {exports} exports need about "
            f"{needed / GIB:.1f}: make room, or lower checkpoint.keep"
        )
        raise ConfigError("run.dir", config.run.dir, advice)


def check_shared(folder: Path, node: int, nodes: int, identity: str, *, within: float = SHARED_WITHIN) -> None:
    """All nodes write into `folder` and see what the others wrote, within so many seconds.

    `identity` is the same on every node of a start, and tells it from earlier ones. Raises FileSystemError or
    EnvironmentSetupError.
    """
    with naming(folder / "nodes"):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"node-{node}", identity)
    end = time.monotonic() + within
    while missing := [other for other in range(nodes) if not _wrote(folder / f"node-{other}", identity)]:
        if time.monotonic() >= end:
            others = ", ".join(map(str, missing))
            raise EnvironmentSetupError(
                f"{folder}: node {node} ({socket.gethostname()}) does not see what node {others} wrote there within "
                f"{within:.0f} s: either it has not started, or run.dir is not on a file system that all nodes share"
            )
        time.sleep(0.05)


def _wrote(path: Path, identity: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == identity
    except OSError:
        return False
