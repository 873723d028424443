"""A tiny Qwen2.5 and a tiny Qwen3 with everything random, and what transformers and torch say about it: the oracle of the layouts."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.support.tiny_qwen2 import QWEN3, write_tiny_qwen2

Lengths = tuple[tuple[int, ...], ...]
"""Sequences per pack, in tokens with the last label."""
REST: Lengths = ((33, 7), (64,), (5, 18, 29))
LENGTHS: Lengths = ((1300, 1100, 900, 513, 301), *REST)
"""Of the untied model; the first pack holds more than 4096."""
SHORT_LENGTHS: Lengths = ((257, 120, 65, 64, 51, 33, 32, 17, 16, 3), *REST)
"""Of the others: that the output layer is tied shows in few tokens, too, as does all that distinguishes Qwen3."""
MODELS = {
    "untied": {"seed": 11},
    "tied": {"seed": 12, "tie_word_embeddings": True},
    "qwen3": {"seed": 13, **QWEN3},
}
LONGEST_TRAINED = 900
"""Longer sequences have log-probs to compare, but no part in the optimizer steps: gradients show in few tokens."""
LEARNING_RATE = 1e-3


def lengths_of(model: str) -> Lengths:
    """Of one of MODELS."""
    return LENGTHS if model == "untied" else SHORT_LENGTHS


def packs_of(model: str, longest: int | None = None) -> list[list[int]]:
    """The numbers of the sequences in each pack, without those over `longest` tokens."""
    numbers = itertools.count()
    packs = [[(next(numbers), length) for length in pack] for pack in lengths_of(model)]
    return [[number for number, length in pack if longest is None or length <= longest] for pack in packs]


def write_tiny_qwen(folder: Path, name: str) -> None:
    """Writes an HF folder of one of MODELS with random biases and norm weights (HF's zeros and ones hide errors), and `oracle.tensors`.

    The oracle holds, per sequence, tokens, loss weights, log-probs and entropies, and for two Adam steps on those up to
    LONGEST_TRAINED (weighted log-prob sum over the token count) loss and gradient norm. The vocabulary, 1003, is odd.
    """
    lengths = [length for pack in lengths_of(name) for length in pack]
    trained = [number for pack in packs_of(name, LONGEST_TRAINED) for number in pack]
    model = write_tiny_qwen2(
        folder, vocab_size=1003, hidden_size=64, intermediate_size=176, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.25, **MODELS[name],
    )  # fmt: skip
    save_file(_oracle(model, lengths, trained), folder / "oracle.tensors")


def _oracle(model: torch.nn.Module, lengths: list[int], trained: list[int]) -> dict[str, torch.Tensor]:
    oracle: dict[str, torch.Tensor] = {}
    for index, length in enumerate(lengths):
        oracle[f"tokens.{index}"] = torch.randint(0, 1003, (length,))
        oracle[f"weights.{index}"] = torch.randn(length - 1)
    largest = torch.zeros(())
    with torch.no_grad():
        for index in range(len(lengths)):
            logits, log_softmax, logprob = _numbers(model, oracle[f"tokens.{index}"])
            oracle[f"logprob.{index}"] = logprob
            oracle[f"entropy.{index}"] = -(log_softmax.exp() * log_softmax).sum(-1)
            largest = torch.maximum(largest, logits.max())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    losses, norms = [], []
    for _ in range(2):
        optimizer.zero_grad()
        total = torch.zeros(())
        for index in trained:
            _, _, logprob = _numbers(model, oracle[f"tokens.{index}"])
            loss = -(logprob * oracle[f"weights.{index}"]).sum() / sum(lengths[number] - 1 for number in trained)
            loss.backward()
            total += loss.detach()
        losses.append(total)
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
    return oracle | {"loss": torch.stack(losses), "grad_norm": torch.stack(norms), "largest_logit": largest}


def _numbers(model: torch.nn.Module, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits and log-softmax [length − 1, vocabulary] of a sequence, and the log-probs of its tokens but the first."""
    logits = model(tokens[None, :-1]).logits[0]
    log_softmax = torch.log_softmax(logits, -1)
    return logits, log_softmax, log_softmax.gather(1, tokens[1:, None])[:, 0]
