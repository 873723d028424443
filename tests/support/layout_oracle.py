"""A tiny Qwen2.5 with everything random, and what transformers and torch say about it: the oracle of the layouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.support.tiny_qwen2 import write_tiny_qwen2

Lengths = tuple[tuple[int, ...], ...]
"""Sequences per pack, in tokens with the last label."""
REST: Lengths = ((33, 7), (64,), (5, 18, 29))
LENGTHS: Lengths = ((1300, 1100, 900, 513, 301), *REST)
"""Of the untied model; the first pack holds more than 4096."""
TIED_LENGTHS: Lengths = ((257, 120, 65, 64, 51, 33, 32, 17, 16, 3), *REST)
"""That the output layer is tied shows in few tokens, too."""
LEARNING_RATE = 1e-3


def lengths_of(model: str) -> Lengths:
    """Of `tied` or `untied`."""
    return TIED_LENGTHS if model == "tied" else LENGTHS


def write_tiny_qwen(folder: Path, *, tied: bool) -> None:
    """Writes an HF folder with random biases and norm weights (HF's zeros and ones hide errors), and `oracle.tensors`.

    The oracle holds, per sequence, tokens, loss weights, log-probs and entropies, and for two Adam steps on all of
    them (weighted log-prob sum over the token count) loss and gradient norm. The vocabulary, 1003, is odd.
    """
    packs = lengths_of("tied" if tied else "untied")
    model = write_tiny_qwen2(
        folder, seed=11 + tied, vocab_size=1003, hidden_size=64, intermediate_size=176, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, initializer_range=0.25,
    )  # fmt: skip
    save_file(_oracle(model, [length for pack in packs for length in pack]), folder / "oracle.tensors")


def _oracle(model: torch.nn.Module, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
    oracle: dict[str, torch.Tensor] = {}
    for index, length in enumerate(lengths):
        oracle[f"tokens.{index}"] = torch.randint(0, 1003, (length,))
        oracle[f"weights.{index}"] = torch.randn(length - 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    losses, norms, largest = [], [], torch.zeros(())
    for step in range(2):
        optimizer.zero_grad()
        total = torch.zeros(())
        for index in range(len(lengths)):
            tokens = oracle[f"tokens.{index}"]
            logits = model(tokens[None, :-1]).logits[0]
            log_softmax = torch.log_softmax(logits, -1)
            logprob = log_softmax.gather(1, tokens[1:, None])[:, 0]
            if step == 0:
                oracle[f"logprob.{index}"] = logprob.detach()
                oracle[f"entropy.{index}"] = -(log_softmax.exp() * log_softmax).sum(-1).detach()
                largest = torch.maximum(largest, logits.detach().max())
            loss = -(logprob * oracle[f"weights.{index}"]).sum() / sum(n - 1 for n in lengths)
            loss.backward()
            total += loss.detach()
        losses.append(total)
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
    return oracle | {"loss": torch.stack(losses), "grad_norm": torch.stack(norms), "largest_logit": largest}
