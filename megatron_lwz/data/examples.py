"""Reads and tokenises conversations, and makes batches of them in a seeded order for supervised fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from megatron_lwz.data.instructions import Rendering, find_fault, read_conversations, tokenize
from megatron_lwz.data.prompts import PromptOrder
from megatron_lwz.data.replies import LeftOut
from megatron_lwz.data.supervised import SupervisedBatch, Weighting, weigh
from megatron_lwz.errors import DataError
from megatron_lwz.types import SequenceBatch


@dataclass(frozen=True)
class ReadExamples:
    """The examples of all files. Each kept example is (id, tokens [n] int32, trained [n] bool)."""

    kept: Sequence[tuple[str, torch.Tensor, torch.Tensor]]
    left_out: LeftOut
    """Conversations that are not used, by reason."""
    truncated: int
    unanswered: int
    """Last questions without a reply, which are not part of their conversations' tokens."""
    control_note: str = ""
    """The tokenizer's note about texts that spell out control tokens."""

    def __str__(self) -> str:
        counts = f"{len(self.kept)} conversations, {self.left_out}, {self.truncated} truncated"
        unanswered = f", {self.unanswered} last questions without a reply" if self.unanswered else ""
        return counts + unanswered + self.control_note


def read_examples(
    paths: Sequence[Path],
    encode: Callable[[str], list[int]],
    eos_ids: Sequence[int],
    *,
    rendering: Rendering,
    maximum_tokens: int,
    long_rows: Literal["drop", "truncate"],
) -> ReadExamples:
    """Reads and tokenises files in order. Raises DataError naming file and line, or the reasons if no example is left."""
    kept, left_out, truncated, unanswered = [], LeftOut(), 0, 0
    for path in paths:
        for conversation in read_conversations(path):
            fault = find_fault(conversation, rendering)
            if fault is not None:
                left_out[fault] += 1
                continue
            example = tokenize(conversation, encode, eos_ids, rendering)
            tokens, trained = torch.tensor(example.tokens, dtype=torch.int32), torch.tensor(example.trained)
            long = len(tokens) > maximum_tokens
            if long and long_rows == "truncate":
                tokens, trained = tokens[:maximum_tokens].clone(), trained[:maximum_tokens].clone()
            if long and (long_rows == "drop" or not trained.any()):
                left_out[f"longer than {maximum_tokens} tokens (training.sequence_length)"] += 1
                continue
            truncated += long
            unanswered += conversation.unanswered
            kept.append((example.id, tokens, trained))
    if not kept:
        raise DataError(", ".join(map(str, paths)) or "data.instructions", left_out.all_of(left_out.total()))
    return ReadExamples(kept, left_out, truncated, unanswered)


class ExampleSource:
    """The examples epoch after epoch. Each epoch has its own order, which depends on the seed alone."""

    def __init__(
        self,
        examples: Sequence[tuple[str, torch.Tensor, torch.Tensor]],
        *,
        weighting: Weighting,
        seed: int,
        shuffle: bool,
        epochs: float | None = None,
    ) -> None:
        """Takes the number of `epochs` after which the examples are used up; None for no limit."""
        self._examples = examples
        self._weighting = weighting
        self._order = PromptOrder(len(examples), seed, shuffle)
        self.total = None if epochs is None else math.ceil(round(epochs * len(examples), 6))
        """Number of conversations in all epochs; None for no limit."""

    def __len__(self) -> int:
        """Returns the number of conversations in one epoch."""
        return len(self._examples)

    def take(self, cursor: int, count: int) -> tuple[SupervisedBatch, int]:
        """Returns the next `count` conversations (fewer at the end of the last epoch) and the cursor after them.

        Raises DataError when the last epoch is over.
        """
        stop = cursor + count if self.total is None else min(cursor + count, self.total)
        if stop <= cursor:
            raise DataError(
                "data.instructions", f"all {cursor} conversations of sft.epochs are taken: raise sft.epochs"
            )
        return supervised_batch([self._examples[self._order[k]] for k in range(cursor, stop)], self._weighting), stop


def supervised_batch(
    examples: Sequence[tuple[str, torch.Tensor, torch.Tensor]], weighting: Weighting
) -> SupervisedBatch:
    """Makes one batch of the examples. Sequences are independent, so packing them does not change the loss."""
    ids, tokens, trained = zip(*examples, strict=True)
    lengths = torch.tensor([len(values) for values in tokens])
    sequences = SequenceBatch(
        tokens=torch.cat(tokens).long(),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        prompt_lengths=torch.tensor([int(mask.int().argmax()) for mask in trained]),
        behaviour_logprobs=torch.zeros(int(lengths.sum())),
        advantages=torch.zeros(len(examples)),
        weights=torch.ones(len(examples)),
    )
    weights, denominator = weigh(sequences, torch.cat(trained), weighting)
    return SupervisedBatch(sequences, weights, denominator, ids)
