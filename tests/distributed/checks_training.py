"""Worker side of test_training: trains the same tiny model on the same data under several layouts."""

from __future__ import annotations

import contextlib
import json
import multiprocessing.process
import pickle
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_lwz.config import Config, validate
from megatron_lwz.distributed import groups, launch
from megatron_lwz.errors import CheckpointError, DamagedCheckpoint
from megatron_lwz.models.hf import checksum_policy
from megatron_lwz.planner.live_bytes import LiveBytes
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.batching import make_micro_batches
from megatron_lwz.training.checkpoint import latest, load_checkpoint, load_model, run_state, save_model, together
from megatron_lwz.training.checkpoint_saver import CheckpointSaver
from megatron_lwz.training.checkpoint_writer import write_snapshot
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.optimizer import parts
from megatron_lwz.training.reference import ReferenceWeights
from megatron_lwz.training.resume import restore
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import StepResult, TrainingError, forward_statistics, train_step
from megatron_lwz.training.token_logprobs import write_logprobs
from megatron_lwz.types import MicroBatch, SequenceBatch
from tests.support.earlier_checkpoint import write_earlier_checkpoint

VOCABULARY = 101  # not divisible by anything: padded rows must not count
MODEL = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
}
MEASURED = ("dp2", "tp2", "pp2", "dp2_bf16", "dp2_plain_optimizer")
WIDE = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 512}
SCORED = ("tp2", "pp2", "vpp2", "cp2", "dp2")
EARLIER = ("pp2", "dp2_bf16", "dp2_plain_optimizer", "one_bf16_plain_optimizer")
"""Saved in the form of earlier versions, too, as <name>_earlier."""
BEFORE, AFTER = (
    1,
    2,
)  # steps before the checkpoint and after it: the first one uses the state, the second shows what it made
SEQUENCES, SEQUENCES_AFTER = 9, 4  # of the first step, enough for a pipeline to fill; of the others


def config_of(folder: str, *, tie: bool = True, cap: int = 96, hf: str | None = None, **sections: Any) -> Config:
    model = {"hf": hf} if hf else {"architecture": MODEL | {"tie_word_embeddings": tie}}
    tree: dict[str, Any] = {
        "run": {"dir": folder},
        "model": model | {"vocab_padding": 8},
        "training": {"precision": "fp32", "steps": 4, "tokens_per_micro_batch": cap},
        "optimizer": {"lr": 2e-3, "warmup_steps": 2, "schedule": "cosine"},
    }
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return validate(tree)


def batch_of(step: int, count: int | None = None) -> SequenceBatch:
    count = count or (SEQUENCES_AFTER if step else SEQUENCES)
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(3, 60, (count,), generator=generator)
    total = int(lengths.sum())
    return SequenceBatch(
        tokens=torch.randint(0, VOCABULARY, (total,), generator=generator),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        prompt_lengths=torch.randint(1, 3, (count,), generator=generator),
        behaviour_logprobs=torch.zeros(total),
        advantages=torch.zeros(count),
        weights=torch.ones(count),
    )


def step_once(state: TrainState, step: int, count: int | None = None) -> StepResult:
    batch = batch_of(step, count)
    weights = torch.rand(len(batch.tokens), generator=torch.Generator().manual_seed(step))

    def loss(statistics: torch.Tensor, micro_batch: MicroBatch, _: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logprob, entropy, _lse = statistics
        metrics = {"entropy": entropy.sum(), "weight/max": micro_batch.weights.max()}
        return -(logprob * micro_batch.weights).sum(), metrics

    result = train_step(state, make_micro_batches(batch, state.config, weights), loss, 200)
    state.step += 1
    return result


def train(state: TrainState, steps: range) -> list[list[float]]:
    results = [step_once(state, step) for step in steps]
    return [[r.loss, r.grad_norm, r.lr, r.metrics["entropy"], r.metrics["weight/max"]] for r in results]


def run_layouts(folder: str, layouts: dict[str, dict[str, Any]], loads: list[list[str]]) -> dict[str, Any]:
    """Trains, saves and goes on under every layout; `loads` are (checkpoint's layout, layout to load it under)."""
    found: dict[str, Any] = {}
    for name, sections in layouts.items():
        config = config_of(f"{folder}/{name}", **sections)
        launch.initialize(config)
        state = build_train_state(config)
        before = train(state, range(BEFORE))
        half_written = Path(folder, name, "checkpoints", f".step_{BEFORE:08d}.tmp")
        if groups.is_rank_zero():
            half_written.mkdir(parents=True)
            (half_written / "left_by_a_kill").touch()
        complete: list[int] = []
        with no_child_process(), CheckpointSaver(state, half_written.parent, complete.append) as saver:
            assert not groups.is_rank_zero() or not half_written.exists(), "what a kill left"
            saver.save({"cursor": 7})
            if name in EARLIER:
                write_earlier_checkpoint(state, checkpoint(folder, f"{name}_earlier"), {"cursor": 7})
            found[name] = before + train(state, range(BEFORE, BEFORE + AFTER))  # while the thread writes
        assert complete == [BEFORE] and not half_written.exists()
        lone = step_once(state, 5, count=1)  # one sequence for all ranks: the others get a pack of padding
        found[f"{name} lone"] = [lone.loss, lone.grad_norm, lone.lr]
    for source, name in loads:
        config = config_of(f"{folder}/{name}", **layouts[name])
        launch.initialize(config)
        state = build_train_state(config)
        extra = load_checkpoint(state, checkpoint(folder, source))
        assert extra == {"cursor": 7} and state.step == BEFORE
        steps = [entry["step"] for part in parts(state.optimizer) for entry in part.optimizer.state.values()]
        found[f"{source} → {name}"] = {
            "steps": train(state, range(BEFORE, BEFORE + AFTER)),
            "own_step_tensors": len({id(step) for step in steps}) == len(steps),
        }
    return found


def checkpoint(folder: str, name: str, step: int = BEFORE) -> Path:
    return Path(folder, name, "checkpoints", f"step_{step:08d}")


def two_ranks(folder: str, layouts: dict[str, Any], loads: list[list[str]], hf: str, rows: str) -> dict[str, Any]:
    found = run_layouts(folder, layouts, loads)
    for name in SCORED:
        config = config_of(folder, hf=hf, parallel=layouts[name].get("parallel", {}))
        write_logprobs(config, Path(rows), Path(folder, f"{name}.jsonl"), temperature=0.7)
    found["zero"] = save_before_first_step(folder)
    found["failed_write"] = failed_write(folder)
    found["damaged"] = damaged(folder)
    found["reference"] = reference(folder)
    found["memory"] = {name: memory(f"{folder}/memory/{name}", layouts[name]) for name in MEASURED}
    return found


def one_rank(folder: str, layouts: dict[str, Any], loads: list[list[str]], weights: str) -> dict[str, Any]:
    found = run_layouts(folder, layouts, loads)
    found["model"] = model_only(folder, weights)
    found["errors"] = bad_checkpoints(folder)
    found["nan"] = not_finite(folder)
    found["memory one"] = memory(f"{folder}/memory/one", {})
    return found


def save_before_first_step(folder: str) -> bool:
    """Whether a state saved at step 0 trains on like a fresh one."""
    config = config_of(f"{folder}/zero", parallel={"tensor": 2})
    launch.initialize(config)
    state = build_train_state(config)
    with CheckpointSaver(state, Path(folder, "zero", "checkpoints")) as saver:
        saver.save({})
    other = build_train_state(config)
    load_checkpoint(other, checkpoint(folder, "zero", 0))
    return train(state, range(2)) == train(other, range(2))


def failed_write(folder: str) -> dict[str, Any]:
    """The files of rank 1 may not grow: what both ranks say, and what is there afterwards."""
    config = config_of(f"{folder}/full_disk", parallel={"tensor": 2})
    launch.initialize(config)
    state = build_train_state(config)
    run = Path(config.run.dir)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    message = ""
    try:
        with CheckpointSaver(state, run / "checkpoints") as saver:
            saver.save({})
            saver.wait()
            if dist.get_rank() == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (3000, unlimited[1]))
            train(state, range(1))
            saver.save({})
            train(state, range(1, 2))
    except CheckpointError as error:
        message = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    dist.barrier()
    newest, files = latest(run), sorted(path.name for path in (run / "checkpoints").iterdir())
    assert newest is not None
    load_checkpoint(state, newest)
    return {"message": message, "files": files, "step": state.step}


def damaged(folder: str) -> dict[str, Any]:
    """The newest checkpoint is damaged in a file of rank 1: the step that both ranks go back to. A fault of one rank alone."""
    config = config_of(f"{folder}/damaged", parallel={"tensor": 2})
    launch.initialize(config)
    state, run = build_train_state(config), RunPaths(config.run.dir)
    with CheckpointSaver(state, run.checkpoints) as saver:
        for step in range(2):
            train(state, range(step, step + 1))
            saver.save({})
            if step == 0:
                before = checksum_policy(state.policies)
    if dist.get_rank() == 0:
        file = run.checkpoint(2) / "__1_0.distcp"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    dist.barrier()
    message = ""
    try:
        load_checkpoint(state, run.checkpoint(2))
    except DamagedCheckpoint as error:
        message = str(error)
    restore(state, run)
    found = {"message": message, "step": state.step, "same": checksum_policy(state.policies) == before}
    try:
        together(run.root, "a file", lambda: [0][dist.get_rank()])
    except DamagedCheckpoint as error:
        found["of_one_rank"] = str(error)
    return found


def memory(folder: str, sections: dict[str, Any]) -> dict[str, float]:
    """Bytes that this rank writes, and the memory that saving and loading them needs beside the state, in that unit."""
    config = config_of(folder, **sections | {"model": {"architecture": MODEL | WIDE}})
    launch.initialize(config)
    state = build_train_state(config)
    own = sum(block.data.nbytes for blocks in run_state(state, {}).tensors.values() for block in blocks)
    with LiveBytes() as copied:
        snapshot = run_state(state, {}).independent()
    with LiveBytes() as written_from_it:
        write_snapshot(snapshot, Path(folder, "snapshot"))
    with LiveBytes() as waiting:
        write_snapshot(run_state(state, {}), Path(folder, "waiting"))
    with LiveBytes() as loaded:
        load_checkpoint(state, Path(folder, "waiting"))
    peaks = {"copy": copied, "write": written_from_it, "waiting": waiting, "load": loaded}
    return {"own": own} | {name: count.peak / own for name, count in peaks.items()}


def reference(folder: str) -> dict[str, Any]:
    """The reference's log-probs after training are the initial ones, and the policy comes back bit for bit."""
    config = config_of(folder, parallel={"tensor": 2})
    launch.initialize(config)
    state = build_train_state(config)
    copy = ReferenceWeights(state)
    micro_batches = make_micro_batches(batch_of(0), config, torch.ones(len(batch_of(0).tokens)))
    initial = torch.cat(forward_statistics(state, micro_batches) or [], dim=1)
    train(state, range(1))
    trained, checksum = (
        torch.cat(forward_statistics(state, micro_batches) or [], dim=1),
        checksum_policy(state.policies),
    )
    with copy.at_work(state):
        inside = torch.cat(forward_statistics(state, micro_batches) or [], dim=1)
    return {
        "reference_is_initial": torch.equal(inside, initial),
        "policy_moved": not torch.equal(trained, initial),
        "policy_is_back": checksum_policy(state.policies) == checksum,
        "host_bytes": copy.arena.nbytes,
        "weights": [parameter.nbytes for policy in state.policies for parameter in policy.parameters()],
    }


def model_only(folder: str, source: str) -> dict[str, Any]:
    """Weights alone: out of a training checkpoint of another layout, through `save_model`, and into bf16."""
    config = config_of(folder)
    launch.initialize(config)
    policies = build_train_state(config).policies
    load_model(policies, Path(folder, source))  # a run folder: its newest checkpoint
    first = checksum_policy(policies)
    save_model(policies, Path(folder, "converted"))
    half = config_of(folder, training={"precision": "bf16"}, checkpoint={"load": f"{folder}/converted"})
    loaded = build_train_state(half).policies
    same = checksum_policy(loaded) == checksum_policy(policies, dtype=torch.bfloat16)
    load_model(policies, Path(folder, "converted"))
    return {"round_trip": checksum_policy(policies) == first, "cast": same}


class Payload:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def bad_checkpoints(folder: str) -> dict[str, Any]:
    """The message for each damaged checkpoint, and whether a payload ran."""
    good = checkpoint(folder, "one")
    bad = Path(folder, "bad")
    mark = Path(folder, "payload_ran")
    config = config_of(folder)
    state = build_train_state(config)
    messages = {}

    def attempt(name: str) -> None:  # loads into the `state` of the moment
        try:
            load_checkpoint(state, bad)
            messages[name] = "loaded"
        except CheckpointError as error:
            messages[name] = str(error)
        shutil.rmtree(bad, ignore_errors=True)

    attempt("missing")
    shutil.copytree(good, bad)
    (bad / ".metadata").write_bytes(pickle.dumps(Payload(str(mark))))
    attempt("payload in .metadata, with checksums")
    copy_of_an_earlier_version(good, bad)
    (bad / ".metadata").write_bytes(pickle.dumps(Payload(str(mark))))
    attempt("payload in .metadata")
    copy_of_an_earlier_version(good, bad)
    torch.save({"state": Payload(str(mark))}, bad / "common.pt")
    attempt("payload in common.pt")
    shutil.copytree(good, bad)
    data = next(bad.glob("*.distcp"))
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    attempt("truncated")
    shutil.copytree(good, bad)
    (bad / "state.json").write_text("{")
    attempt("state.json")
    shutil.copytree(Path(folder, "converted"), bad)
    attempt("weights only")
    shutil.copytree(good, bad)
    state = build_train_state(config_of(folder, tie=False))
    attempt("another model")
    return {"messages": messages, "payload_ran": mark.exists()}


def copy_of_an_earlier_version(good: Path, target: Path) -> None:
    """Without checksums: what is read is then all that protects."""
    shutil.copytree(good, target)
    (target / "checksums.json").unlink()
    record = json.loads((target / "state.json").read_text())
    del record["checksums"]
    (target / "state.json").write_text(json.dumps(record))


def not_finite(folder: str) -> str:
    state = build_train_state(config_of(folder))
    with torch.no_grad():
        next(state.policies[0].parameters()).fill_(float("nan"))
    try:
        step_once(state, 0)
    except TrainingError as error:
        return str(error)
    return "trained"


@contextlib.contextmanager
def no_child_process() -> Iterator[None]:
    """Fails if a process is started inside: Megatron's own writer would, and hang without psutil or a main guard."""

    def refuse(self: object) -> None:
        raise AssertionError("a child process was started")

    start = multiprocessing.process.BaseProcess.start
    multiprocessing.process.BaseProcess.start = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        multiprocessing.process.BaseProcess.start = start  # type: ignore[method-assign]


def four_ranks(folder: str, layouts: dict[str, Any], loads: list[list[str]]) -> dict[str, Any]:
    found = run_layouts(folder, layouts, loads)
    found["data_ranks"] = groups.data_size()
    return found
