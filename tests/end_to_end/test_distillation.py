"""A tiny Qwen2.5 learns from a tiny Qwen3 by writing itself: no rewards, and the reverse KL on held-out prompts falls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.stages import rows_of, run
from tests.support.tiny_qwen2 import tiny_qwen2, write_word_tokenizer

WORDS = [f"w{number}" for number in range(40)]
SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1, "vocab_size": len(WORDS) + 1}


def texts(generator: torch.Generator, rows: int, length: int) -> torch.Tensor:
    """Each word is one of three that follow the word before it: log 3 nats per token."""
    words = [torch.randint(len(WORDS), (rows,), generator=generator)]
    for _ in range(length - 1):
        words.append((words[-1] * 3 + torch.randint(3, (rows,), generator=generator)) % len(WORDS))
    return torch.stack(words, 1) + 1  # 0 is the end of a text


def write_teacher(folder: Path) -> None:
    """A Qwen3 that has learned those texts."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "head_dim": 16}
    teacher = tiny_qwen2(seed=3, model_type="qwen3", **SIZES, **sizes).train()
    optimizer, generator = torch.optim.AdamW(teacher.parameters(), lr=3e-3), torch.Generator().manual_seed(5)
    for _ in range(200):
        batch = texts(generator, 32, 48)
        optimizer.zero_grad()
        teacher(batch, labels=batch).loss.backward()
        optimizer.step()
    teacher.save_pretrained(folder)


def reverse_kl(student: Path, teacher: Path, prompts: list[list[int]]) -> float:
    """Mean over the tokens that the student writes of KL(student ‖ teacher), over the whole vocabulary, in nats."""
    policies = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in (student, teacher)
    ]
    torch.manual_seed(0)
    tokens = torch.tensor(prompts).repeat(8, 1)
    with torch.no_grad():
        for _ in range(32):
            chances = policies[0](tokens).logits[:, -1].softmax(-1)
            tokens = torch.cat([tokens, chances.multinomial(1)], 1)
        ours, theirs = (policy(tokens).logits[:, len(prompts[0]) - 1 : -1].log_softmax(-1) for policy in policies)
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


@pytest.mark.long
def test_a_student_learns_its_teacher_s_words_by_writing(tmp_path: Path) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    write_teacher(teacher)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    tiny_qwen2(seed=3, **SIZES, **sizes).save_pretrained(student)
    for folder in (teacher, student):
        write_word_tokenizer(folder, WORDS)
    pairs = [(number, (7 * number + 3) % 40) for number in range(40)]
    rows = [json.dumps({"prompt": f"w{first} w{second}", "length_range": [10, 50]}) for first, second in pairs]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows[:30]))
    held_out = [[first + 1, second + 1] for first, second in pairs[30:]]
    config: dict[str, Any] = {
        "run": {"dir": str(tmp_path / "run")},
        "model": {"hf": str(student)},
        "training": {"precision": "fp32", "steps": 80, "prompts_per_step": 8, "tokens_per_micro_batch": 2048},
        "data": {"prompts": str(tmp_path / "prompts.jsonl"), "template": "bare", "max_prompt_tokens": 32},
        "rollout": {"max_new_tokens": 48, "concurrency": 64, "temperature": 1.0},
        "grpo": {
            "group_size": 8, "teacher": str(teacher), "kl_coefficient": 1.0, "kl_placement": "reward",
            "zero_variance": "keep", "truncated": "keep",
        },
        "reward": {"length": {"weight": 0.0, "maximum": 100}, "format": {"weight": 0.0}},
        "optimizer": {"lr": 3e-3, "weight_decay": 0.0},
        "checkpoint": {"interval": 0},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    done = run("train_grpo", str(tmp_path / "config.yaml"))
    assert done.returncode == 0, done.stderr
    kl = [row["kl"] for row in rows_of(tmp_path / "run")]
    assert sum(kl[-5:]) < 0.2 * sum(kl[:5])
    newest = max(path for path in (tmp_path / "run" / "weights").iterdir() if path.is_dir())
    before, after = (reverse_kl(folder, teacher, held_out) for folder in (student, newest))
    print(f"reverse KL on held-out prompts: {before:.2f} before, {after:.2f} after")
    assert after < 0.2 * before
