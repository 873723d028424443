"""Pretraining and fine-tuning do not depend on the layout, on packing or on a kill, and follow a plain torch loop."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megatron_lwz.config import load_config
from megatron_lwz.data.supervised import BatchSource
from tests.distributed.checks_supervised import INTERVAL, KILLED_AFTER
from tests.distributed.word_models import POISON, WORDS, write_models
from tests.support.ranks import run_ranks

STEPS, MORE_STEPS = 8, 20
"""In make test, and in make test-long."""
BESIDE, MORE_BESIDE = 12, 50
"""The same, beside a plain loop."""
BF16_TOLERANCE = 2e-3
"""Relative, per step, over 20 steps of bf16 with fp32 masters and gradients; measured: 7e-4, against fp32 1.4e-3."""


def beside_a_plain_loop(steps: int) -> list[str]:
    return [f"training.steps={steps}", "optimizer.schedule=cosine", "training.z_loss=0"]


ONE = {"one": [], "one_apart": ["training.tokens_per_micro_batch=48"], "one_beside": beside_a_plain_loop(BESIDE)}
TWO = {
    "tp2": ["parallel.tensor=2"],
    "pp2": ["parallel.pipeline=2"],
    "cp2": ["parallel.context=2"],
    "dp2": [],
}
FOUR = {"tp2_pp2": ["parallel.tensor=2", "parallel.pipeline=2"]}
KILLED = [["sft", "dp2"], ["pretrain", "tp2"]]
MOVED = [["sft", "tp2", "dp2"]]
STAGES = ("sft", "pretrain")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two configs over one tiny Qwen2 with everything random, its tokenizer, documents and instruction rows."""
    folder = tmp_path_factory.mktemp("supervised")
    write_models(folder, layers=2)
    rng = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS[:-1], k=rng.randint(low, high)))

    documents = [{"text": text(3, 70)} for _ in range(30)]
    rows = [{"prompt": text(1, 8), "response": text(1, 30)} for _ in range(29)]
    rows.insert(7, {"prompt": POISON, "response": text(4, 4)})
    for name, lines in (("documents", documents), ("held_out", documents[:8]), ("rows", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    common: dict[str, Any] = {
        "model": {"hf": f"{folder}/hf", "vocab_padding": 8},
        "training": {
            "steps": STEPS, "sequence_length": 48, "tokens_per_micro_batch": 160, "precision": "fp32",
        },
        "optimizer": {"lr": 1e-3, "weight_decay": 0.1},
        "checkpoint": {"interval": 0},
        "logging": {"tensorboard": False},
    }  # fmt: skip
    sft = common | {
        "data": {"instructions": [f"{folder}/rows.jsonl"], "template": "bare"},
        "sft": {"weighting": "sequence"},
        "training": common["training"] | {"sequences_per_step": 10},
    }
    pretrain = common | {
        "data": {"corpus": [f"{folder}/documents.jsonl"], "validation": {"same": [f"{folder}/held_out.jsonl"]}},
        "training": common["training"] | {"sequences_per_step": 6, "ramp_from": 2, "ramp_steps": 6, "z_loss": 1e-3},
        "optimizer": common["optimizer"] | {"schedule": "wsd", "warmup_steps": 3, "decay_steps": 3},
        "evaluation": {"interval": 4},
    }
    for name, tree in (("sft", sft), ("pretrain", pretrain)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return folder


@pytest.fixture(scope="module")
def measured(folder: Path) -> dict[str, Any]:
    checks, shared = "tests.distributed.checks_supervised", {"folder": str(folder), "timeout": 420.0}
    one = run_ranks(f"{checks}:one_rank", ranks=1, layouts=ONE, in_bf16=["one"], **shared)
    two = run_ranks(f"{checks}:curves", ranks=2, layouts=TWO, killed=KILLED, moved=MOVED, **shared)
    return one[0] | two[0]


@pytest.fixture(scope="module")
def measured_at_length(folder: Path) -> dict[str, Any]:
    """More steps, more layouts, and bf16 under all of them: for make test-long."""
    checks, shared = "tests.distributed.checks_supervised", {"folder": str(folder), "timeout": 900.0}
    found: dict[str, Any] = {}
    for ranks, layouts in ((1, {"one": []}), (2, TWO), (4, FOUR)):
        longer = {f"{name}_longer": [*overrides, f"training.steps={MORE_STEPS}"] for name, overrides in layouts.items()}
        found |= run_ranks(f"{checks}:curves", ranks=ranks, layouts=longer, killed=[], moved=[], **shared)[0]
        found |= run_ranks(f"{checks}:curves_in_bf16", ranks=ranks, layouts=longer, **shared)[0]
    beside = {"one_beside_longer": beside_a_plain_loop(MORE_BESIDE)}
    return found | run_ranks(f"{checks}:curves", ranks=1, layouts=beside, killed=[], moved=[], **shared)[0]


def losses(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in rows], dtype=torch.float64)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", TWO)
def test_the_loss_curve_is_invariant_to_the_layout(measured: dict[str, Any], stage: str, name: str) -> None:
    assert_same_curve(measured[f"{stage} {name}"], measured[f"{stage} one"], STEPS)


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", [*TWO, *FOUR])
def test_a_longer_loss_curve_is_invariant_to_more_layouts(
    measured_at_length: dict[str, Any], stage: str, name: str
) -> None:
    found, one = measured_at_length[f"{stage} {name}_longer"], measured_at_length[f"{stage} one_longer"]
    assert_same_curve(found, one, MORE_STEPS)


def assert_same_curve(found: list[dict[str, Any]], one: list[dict[str, Any]], steps: int) -> None:
    assert len(found) == steps
    torch.testing.assert_close(losses(found), losses(one), rtol=0.0, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", [*TWO, *FOUR])
def test_in_bf16_the_curve_varies_with_the_layout_by_less_than_the_tolerance(
    measured_at_length: dict[str, Any], name: str
) -> None:
    rows, one = (measured_at_length[f"pretrain {layout}_longer bf16"] for layout in (name, "one"))
    assert len(rows) == MORE_STEPS
    torch.testing.assert_close(losses(rows), losses(one), rtol=BF16_TOLERANCE, atol=0.0)


def test_bf16_with_fp32_masters_follows_fp32(measured: dict[str, Any]) -> None:
    assert_bf16_follows(measured["pretrain one bf16"], measured["pretrain one"])


@pytest.mark.long
def test_bf16_follows_fp32_for_longer(measured_at_length: dict[str, Any]) -> None:
    assert_bf16_follows(measured_at_length["pretrain one_longer bf16"], measured_at_length["pretrain one_longer"])


def assert_bf16_follows(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(losses(found), losses(expected), rtol=2 * BF16_TOLERANCE, atol=0.0)


@pytest.mark.parametrize("stage", STAGES)
def test_packed_loss_is_the_loss_of_the_documents_apart(measured: dict[str, Any], stage: str) -> None:
    apart, packed = measured[f"{stage} one_apart"], measured[f"{stage} one"]
    torch.testing.assert_close(losses(apart), losses(packed), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(("stage", "name"), KILLED)
def test_a_killed_run_resumes_bit_for_bit(measured: dict[str, Any], stage: str, name: str) -> None:
    assert KILLED_AFTER % INTERVAL, "the kill must not fall on a checkpoint"
    assert measured[f"{stage} {name} killed"] == measured[f"{stage} {name}"]


@pytest.mark.parametrize(("stage", "source", "target"), MOVED)
def test_a_run_resumes_under_another_layout(measured: dict[str, Any], stage: str, source: str, target: str) -> None:
    moved, whole = measured[f"{stage} {source} → {target}"], measured[f"{stage} one"]
    torch.testing.assert_close(losses(moved), losses(whole), rtol=0.0, atol=1e-5)
    assert [row["tokens"] for row in moved] == [row["tokens"] for row in whole], "the data order changed"


def test_the_batch_ramps_up_and_the_rate_warms_up_and_decays(measured: dict[str, Any]) -> None:
    rows = measured["pretrain one"]
    assert [round(row["lr"] * 1e3, 3) for row in rows] == [0.333, 0.667, *[1.0] * (STEPS - 4), 0.667, 0.333]
    sizes = [row["tokens"] for row in rows]
    assert sizes[0] <= 2 * 48 < max(sizes) <= 6 * 48 and all(row["z_loss"] > 0 for row in rows)


def test_validation_follows_the_training_loss(folder: Path, measured: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in (folder / "pretrain/one/evaluation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 4, STEPS]
    assert rows[0]["validation/same"] == pytest.approx(measured["pretrain one"][0]["loss"], rel=0.1)
    assert rows[-1]["validation/same"] < rows[0]["validation/same"]


def test_a_step_that_is_not_finite_is_skipped_and_written_down_and_the_budget_ends_the_run(
    folder: Path, measured: dict[str, Any]
) -> None:
    found = measured["poisoned"]
    assert "training.skip_budget is 1" in found["error"] and "\n" not in found["error"]
    assert [name for name in found["files"] if name.endswith(".json")] == ["step_00000002.json", "step_00000006.json"]
    record = json.loads((folder / "sft/poisoned/skipped/step_00000002.json").read_text())
    assert "rows.jsonl:8" in record["ids"] and record["reason"] == "not finite"
    rows = [json.loads(line) for line in (folder / "sft/poisoned/metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] is None for row in rows] == [False, True, False, False, False]


@pytest.mark.long
def test_a_sequence_of_32k_tokens_trains_under_context_parallelism_with_recompute(folder: Path) -> None:
    words = random.Random(1).choices(WORDS[:-1], k=40_000)
    (folder / "book.jsonl").write_text(json.dumps({"text": " ".join(words)}) + "\n")
    hf = shutil.copytree(folder / "hf", folder / "hf_long")
    settings = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 32768}))
    target, shared = "tests.distributed.checks_supervised:long_context", {"folder": str(folder), "timeout": 900.0}
    longer = f"model.hf={hf}"
    (whole,) = run_ranks(target, ranks=1, overrides=[longer], **shared)
    split = run_ranks(target, ranks=2, overrides=[longer, "parallel.context=2", "training.recompute=full"], **shared)
    assert whole[0]["tokens"] == 32768
    torch.testing.assert_close(losses(split[0]), losses(whole), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_the_curve_is_that_of_transformers_and_a_plain_torch_loop(
    folder: Path, measured: dict[str, Any], stage: str
) -> None:
    expected = plain_loop(folder, stage, BESIDE)
    torch.testing.assert_close(losses(measured[f"{stage} one_beside"]), expected, rtol=0.0, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_a_longer_curve_is_that_of_transformers_and_a_plain_torch_loop(
    folder: Path, measured_at_length: dict[str, Any], stage: str
) -> None:
    expected = plain_loop(folder, stage, MORE_BESIDE)
    torch.testing.assert_close(losses(measured_at_length[f"{stage} one_beside_longer"]), expected, rtol=0.0, atol=1e-4)


def plain_loop(folder: Path, stage: str, steps: int) -> torch.Tensor:
    """Loss per step of transformers + AdamW over the same batches, one sequence at a time, no packing."""
    from transformers import Qwen2ForCausalLM

    from megatron_lwz.data.corpus import open_corpus
    from megatron_lwz.training.optimizer import Schedule
    from megatron_lwz.training.pretrain import CorpusSource
    from megatron_lwz.training.sft import build_source
    from megatron_lwz.training.supervised import sequences_of_step

    config = load_config(folder / f"{stage}.yaml", beside_a_plain_loop(steps))
    source: BatchSource = build_source(config) if stage == "sft" else CorpusSource(open_corpus(config))
    model = Qwen2ForCausalLM.from_pretrained(folder / "hf").float()
    plain = [p for name, p in model.named_parameters() if name.endswith("bias") or "norm" in name]
    decayed = [p for p in model.parameters() if all(p is not other for other in plain)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    schedule, cursor, found = Schedule(config), 0, []
    for step in range(steps):
        batch, cursor = source.take(cursor, sequences_of_step(config.training, step))
        optimizer.zero_grad()
        total = 0.0
        for start, stop in zip(batch.sequences.offsets[:-1], batch.sequences.offsets[1:], strict=True):
            tokens, weights = batch.sequences.tokens[start:stop], batch.weights[start:stop]
            logprobs = torch.log_softmax(model(tokens[None, :-1]).logits[0], -1)
            loss = -(logprobs.gather(1, tokens[1:, None])[:, 0] * weights[1:]).sum() / batch.denominator
            loss.backward()
            total += loss.item()
        found.append(total)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr(step)
        optimizer.step()
    return torch.tensor(found, dtype=torch.float64)
