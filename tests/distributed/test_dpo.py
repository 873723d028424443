"""DPO's loss, gradients and weights do not depend on the layout, and are those of plain transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megatron_lwz.config import load_config
from megatron_lwz.data.prompts import PromptOrder
from tests.distributed.checks_dpo import PAIRS, STEPS
from tests.distributed.word_models import WORDS, write_models
from tests.support.ranks import run_ranks

OPTIONS = ["dpo.length_normalized=true", "dpo.beta=2", "dpo.sft_weight=0.5", "dpo.label_smoothing=0.1"]
LORA = ["lora.rank=4", "optimizer.lr=0.05"]
ONE = {"one": [], "one_apart": ["training.tokens_per_micro_batch=96"], "options": OPTIONS}
TWO = {
    "tp2": ["parallel.tensor=2"],
    "pp2": ["parallel.pipeline=2"],
    "vpp2": ["parallel.pipeline=2", "parallel.virtual_pipeline=2"],
    "cp2": ["parallel.context=2"],
    "dp2": [],
    "options_tp2": [*OPTIONS, "parallel.tensor=2"],
    "options_cp2": [*OPTIONS, "parallel.context=2"],
    "lora": LORA,
    "lora_tp2": [*LORA, "parallel.tensor=2"],
    "lora_pp2": [*LORA, "parallel.pipeline=2"],
}
FOUR = {"tp2_cp2": ["parallel.tensor=2", "parallel.context=2"], "pp2_dp2": ["parallel.pipeline=2"]}
BETA, RATE, EPS = 0.5, 1e-3, 1e-3  # with the usual eps, Adam makes a whole step of a gradient that is only rounding


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpo")
    write_models(folder)
    rng = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS[:-1], k=rng.randint(low, high)))

    for name, count in (("pairs", 12), ("held_out", 5)):
        rows = [
            {"prompt": text(1, 8), "chosen": text(1, 32), "rejected": text(1, 32), "kind": "abc"[n % 3]}
            for n in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": {"hf": f"{folder}/hf", "vocab_padding": 8},
        "training": {
            "steps": 4, "sequences_per_step": PAIRS, "sequence_length": 48, "tokens_per_micro_batch": 200,
            "precision": "fp32",
        },
        "data": {"template": "bare"},
        "dpo": {"pairs": [f"{folder}/pairs.jsonl"], "held_out": [f"{folder}/held_out.jsonl"], "beta": BETA},
        "optimizer": {"lr": RATE, "weight_decay": 0.0, "eps": EPS},
        "checkpoint": {"interval": 0},
        "logging": {"tensorboard": False},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return run_ranks("tests.distributed.checks_dpo:layouts", ranks=1, folder=str(folder), layouts=ONE)[0]


@pytest.fixture(scope="module")
def measured(folder: Path, one: dict[str, Any]) -> dict[str, Any]:
    two = run_ranks("tests.distributed.checks_dpo:layouts", ranks=2, folder=str(folder), layouts=TWO)
    four = run_ranks("tests.distributed.checks_dpo:layouts", ranks=4, folder=str(folder), layouts=FOUR)
    for results in (two, four):  # every rank tells the same
        assert all(result == results[0] for result in results)
    return one | two[0] | four[0]


def same(ours: dict[str, Any], other: dict[str, Any]) -> None:
    for row, expected in zip(ours["steps"], other["steps"], strict=True):
        assert row == pytest.approx(expected, rel=5e-4, abs=5e-5)
    assert ours["start"] == pytest.approx(other["start"], rel=1e-4, abs=1e-4)
    assert ours["end"] == pytest.approx(other["end"], rel=2e-3, abs=2e-3)
    a, b = torch.tensor(ours["rewards"]), torch.tensor(other["rewards"])
    assert torch.allclose(a, b, atol=2e-3), (a - b).abs().max()


def test_packing_changes_nothing(one: dict[str, Any]) -> None:
    same(one["one_apart"], one["one"])


def test_a_policy_that_has_not_changed_prefers_nothing(one: dict[str, Any]) -> None:
    start = one["one"]["start"]
    assert start["validation/margin"] == start["validation/chosen_drift"] == 0.0
    assert start["validation/accuracy"] == 0.5 and start["validation/loss"] == pytest.approx(0.693147, abs=1e-6)
    assert one["one"]["steps"][0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert one["one"]["end"]["validation/margin"] != 0.0


def tokens_of(folder: Path, name: str) -> list[tuple[list[int], list[int], int]]:
    """(chosen, rejected, tokens of the prompt) of each row, tokenised here."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "hf" / "tokenizer.json"))
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    found = []
    for row in rows:
        asked = tokenizer.encode(f"<|user|>: {row['prompt']} <|assistant|>:").ids
        sides = [[*asked, *tokenizer.encode(f" {row[side]}<|endoftext|>").ids] for side in ("chosen", "rejected")]
        found.append((sides[0], sides[1], len(asked)))
    return found


def logprob(model: Any, ids: list[int], prompt: int) -> torch.Tensor:
    """The log-prob of the reply that follows the prompt."""
    logits = model(torch.tensor([ids])).logits[0, :-1]
    picked = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[1:, None])[:, 0]
    return picked[prompt - 1 :].sum()


@pytest.mark.parametrize("name", ["one", "options"])
def test_it_is_dpo_of_plain_transformers(folder: Path, one: dict[str, Any], name: str) -> None:
    """Adam steps: losses, gradient norms, metrics, and the implicit rewards after them."""
    from transformers import AutoModelForCausalLM

    model, frozen = (AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32).eval() for _ in range(2))
    pairs, held_out = tokens_of(folder, "pairs"), tokens_of(folder, "held_out")
    mean = name == "options"
    beta, weight, wrong = (2.0, 0.5, 0.1) if mean else (BETA, 0.0, 0.0)

    def reward(ids: list[int], prompt: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(implicit reward, log-prob per token)."""
        with torch.no_grad():
            reference = logprob(frozen, ids, prompt)
        ours, count = logprob(model, ids, prompt), len(ids) - prompt
        return beta * (ours - reference) / (count if mean else 1), ours / count

    order = PromptOrder(len(pairs), load_config(folder).run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=EPS, weight_decay=0.0)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss, margins, logprobs = torch.zeros(()), 0.0, 0.0
        for good, bad, prompt in (pairs[order[step * PAIRS + k]] for k in range(PAIRS)):
            (chosen, likely), (rejected, _) = reward(good, prompt), reward(bad, prompt)
            z = chosen - rejected
            loss = loss - (1 - wrong) * torch.nn.functional.logsigmoid(z) - weight * likely
            loss = loss - wrong * torch.nn.functional.logsigmoid(-z)
            margins, logprobs = margins + float(z), logprobs + float(likely)
        (loss / PAIRS).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ours = one[name]["steps"][step]
        assert ours["loss"] == pytest.approx(float(loss / PAIRS), rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(float(norm), rel=1e-3)
        assert ours["margin"] == pytest.approx(margins, rel=1e-3, abs=1e-3)
        assert ours["chosen_logprob"] == pytest.approx(logprobs, rel=1e-4)
    with torch.no_grad():
        theirs = torch.tensor([[reward(good, p)[0], reward(bad, p)[0]] for good, bad, p in held_out])
    assert torch.allclose(torch.tensor(one[name]["rewards"]), theirs, atol=2e-3)
    exported = AutoModelForCausalLM.from_pretrained(folder / name / "hf", dtype=torch.float32)
    distance = max((a - b).abs().max() for a, b in zip(exported.parameters(), model.parameters(), strict=True))
    assert distance < 1e-5


@pytest.mark.long
def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(folder: Path) -> None:
    found = run_ranks("tests.distributed.checks_dpo:resumed", ranks=1, folder=str(folder))[0]
    whole, halves = found["whole"], found["halves"]
    assert whole["rows"] == halves["rows"] and len(whole["rows"]) == 2
    assert whole["weights"] == halves["weights"] and whole["held_out"] == halves["held_out"]
    assert {"held_out.jsonl", "held_out.json", "summary.json", "checkpoints", "hf"} <= set(whole["files"])
    assert whole["evaluations"] == [0, 4]


@pytest.mark.long
@pytest.mark.parametrize("layout", [name for name in (*TWO, *FOUR) if not name.startswith("lora")])
def test_loss_gradient_and_rewards_are_invariant_to_the_layout(measured: dict[str, Any], layout: str) -> None:
    same(measured[layout], measured["options" if layout.startswith("options") else "one"])


@pytest.mark.long
@pytest.mark.parametrize("layout", ["lora_tp2", "lora_pp2"])
def test_an_adapter_is_trained_against_its_base_in_every_layout(measured: dict[str, Any], layout: str) -> None:
    assert measured["lora"]["start"]["validation/margin"] == 0.0
    assert abs(measured["lora"]["end"]["validation/margin"]) > 1e-3
    same(measured[layout], measured["lora"])
