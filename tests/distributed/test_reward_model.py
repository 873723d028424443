"""The reward model's loss, gradients, scores and weights do not depend on the layout, and are those of plain transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megatron_lwz.config import load_config, read_hf_architecture
from megatron_lwz.models.hf import RandomInit
from tests.distributed.checks_reward_model import PAIRS, STEPS
from tests.distributed.word_models import WORDS, write_models
from tests.support.ranks import run_ranks

ONE = {"one": [], "one_apart": ["training.tokens_per_micro_batch=96"]}
TWO = {
    "tp2": ["parallel.tensor=2"],
    "tp2_whole": ["parallel.tensor=2", "parallel.sequence=false"],
    "pp2": ["parallel.pipeline=2"],
    "vpp2": ["parallel.pipeline=2", "parallel.virtual_pipeline=2"],
    "cp2": ["parallel.context=2"],
    "dp2": [],
}
FOUR = {"tp2_cp2": ["parallel.tensor=2", "parallel.context=2"], "pp2_dp2": ["parallel.pipeline=2"]}
LAYOUTS = [*list(ONE)[1:], *TWO, *FOUR]
MARGIN, CENTER, RATE = 0.3, 0.05, 1e-2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward_model")
    write_models(folder)
    rng = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS[:-1], k=rng.randint(low, high)))

    for name, count in (("pairs", 30), ("held_out", 11)):
        rows = [
            {
                "prompt": text(1, 8),
                "chosen": text(1, 35),
                "rejected": text(1, 35),
                "margin": 1 + n % 2,
                "kind": "abc"[n % 3],
            }
            for n in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": {"hf": f"{folder}/hf", "vocab_padding": 8},
        "training": {
            "steps": 4, "sequences_per_step": PAIRS, "sequence_length": 48, "tokens_per_micro_batch": 200,
            "precision": "fp32",
        },
        "reward_model": {
            "pairs": [f"{folder}/pairs.jsonl"], "held_out": [f"{folder}/held_out.jsonl"], "margin": MARGIN, "center": CENTER,
        },
        "optimizer": {"lr": RATE, "weight_decay": 0.0},
        "checkpoint": {"interval": 0},
        "logging": {"tensorboard": False},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def measured(folder: Path) -> dict[str, Any]:
    checks = "tests.distributed.checks_reward_model"
    one = run_ranks(f"{checks}:layouts", ranks=1, folder=str(folder), layouts=ONE)
    two = run_ranks(f"{checks}:two_ranks", ranks=2, folder=str(folder), layouts_of_two=TWO, layout=TWO["tp2"])
    four = run_ranks(f"{checks}:layouts", ranks=4, folder=str(folder), layouts=FOUR)
    for results in (two, four):  # every rank tells the same
        assert all(result == results[0] for result in results)
    return one[0] | two[0] | four[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_gradient_and_scores_are_invariant_to_the_layout(measured: dict[str, Any], layout: str) -> None:
    for ours, one in zip(measured[layout]["steps"], measured["one"]["steps"], strict=True):
        assert ours == pytest.approx(one, rel=2e-4, abs=2e-5)
    for when in ("start", "end"):
        ours, one = torch.tensor(measured[layout][when]), torch.tensor(measured["one"][when])
        assert torch.allclose(ours, one, atol=2e-3 if when == "end" else 1e-4), (ours - one).abs().max()


def classifier(folder: Path) -> Any:
    """transformers' model with the trunk of the folder and the head that seed 1234 draws."""
    from transformers import Qwen2ForSequenceClassification

    model = Qwen2ForSequenceClassification.from_pretrained(folder / "hf", num_labels=1, dtype=torch.float32).eval()
    head = RandomInit(read_hf_architecture(folder / "hf"), load_config(folder).run.seed)
    with torch.no_grad():
        model.score.weight.copy_(head.read("score.weight", (1, 32)))
    return model


def tokens_of(folder: Path, name: str) -> list[tuple[list[int], list[int], float]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "hf" / "tokenizer.json"))

    def encode(row: dict[str, Any], side: str) -> list[int]:
        return tokenizer.encode(f"<|user|>: {row['prompt']} <|assistant|>: {row[side]}<|endoftext|>").ids

    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return [(encode(row, "chosen"), encode(row, "rejected"), row["margin"]) for row in rows]


def score(model: Any, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0, 0]


def test_it_is_the_reward_model_of_plain_transformers(folder: Path, measured: dict[str, Any]) -> None:
    """Scores before training, then three Adam steps: losses, gradient norms, and scores after them."""
    from megatron_lwz.data.prompts import PromptOrder

    model, pairs, held_out = classifier(folder), tokens_of(folder, "pairs"), tokens_of(folder, "held_out")
    with torch.no_grad():
        before = torch.tensor([[score(model, c), score(model, r)] for c, r, _ in held_out])
    assert torch.allclose(torch.tensor(measured["one"]["start"]), before, atol=1e-4)
    order = PromptOrder(len(pairs), load_config(folder).run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for step in range(STEPS):
        optimizer.zero_grad()
        chosen = [pairs[order[step * PAIRS + k]] for k in range(PAIRS)]
        loss = torch.zeros(())
        for good, bad, margin in chosen:
            a, b = score(model, good), score(model, bad)
            loss = loss - torch.nn.functional.logsigmoid(a - b - MARGIN * margin) + CENTER * ((a + b) / 2) ** 2
        (loss / PAIRS).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ours = measured["one"]["steps"][step]
        assert ours["loss"] == pytest.approx(float(loss / PAIRS), rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(float(norm), rel=1e-3)


@pytest.mark.parametrize("layout", ["one", "tp2", "pp2", "tp2_cp2"])
def test_exports_load_in_transformers_with_equal_scores(folder: Path, measured: dict[str, Any], layout: str) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder / layout / "hf").eval()
    assert type(model).__name__ == "Qwen2ForSequenceClassification" and model.config.num_labels == 1
    with torch.no_grad():
        theirs = torch.tensor([[score(model, c), score(model, r)] for c, r, _ in tokens_of(folder, "held_out")])
    assert torch.allclose(torch.tensor(measured[layout]["end"]), theirs, atol=2e-4)


def test_a_run_leaves_what_it_promises_and_its_checkpoint_reshards(measured: dict[str, Any]) -> None:
    run = measured["run"]
    assert {"config.yaml", "metrics.jsonl", "evaluation.jsonl", "summary.json", "checkpoints", "hf"} <= set(
        run["files"]
    )
    assert {"held_out.jsonl", "held_out.json"} <= set(run["files"]) and run["rows"] == 4
    assert [row["step"] for row in run["evaluations"]] == [0, 4]
    assert {f"validation/accuracy/{kind}" for kind in "abc"} <= set(run["evaluations"][0])
    assert run["checksums"][0] == run["checksums"][1]
