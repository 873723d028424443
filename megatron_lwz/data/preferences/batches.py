"""Tokenises preference pairs and makes batches of them in a seeded order for training a reward model.

Sequences 2p and 2p + 1 of a batch are the chosen and the rejected text of pair p. Each sequence has one extra token
after its text. It is the label of the text's last token and marks where the score is read. It is never an input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from megatron_lwz.data.preferences.pairs import PreferencePair
from megatron_lwz.data.preferences.rendering import Rendering, split_reply
from megatron_lwz.data.prompts import PromptOrder
from megatron_lwz.data.replies import EMPTY, END_INSIDE, ENDS, LeftOut, holds_end, strip_ends
from megatron_lwz.data.supervised import SupervisedBatch
from megatron_lwz.errors import DataError
from megatron_lwz.types import SequenceBatch

_MARK = 0

P = TypeVar("P")
B = TypeVar("B", bound=SupervisedBatch)


@dataclass(frozen=True)
class TokenPair:
    """A preference pair with the tokens of both texts, each [n] int32."""

    pair: PreferencePair
    chosen: torch.Tensor
    rejected: torch.Tensor


@dataclass(frozen=True)
class PairBatch(SupervisedBatch):
    """A SupervisedBatch of pairs: `denominator` counts pairs, `ids` names them. `margins` is [pairs] fp32."""

    margins: torch.Tensor

    @property
    def predictions(self) -> int:
        """Number of tokens of all texts, without the marks. The score at a text's last token trains all of them."""
        return int(self.sequences.tokens.numel()) - len(self.sequences)


def tokenize_pairs(
    pairs: Sequence[PreferencePair],
    encode: Callable[[str], list[int]],
    rendering: Rendering,
    *,
    maximum_tokens: int,
    ends: Sequence[str] = ENDS,
) -> tuple[list[TokenPair], LeftOut]:
    """Returns (tokenised pairs, the pairs left out by reason): a text is empty, longer than `maximum_tokens` tokens, or goes on
    after a token that ends it.

    A reply loses the texts `ends` of tokens that end it, because the rendering ends each text with its own.
    """
    kept, left_out = [], LeftOut()
    for pair in pairs:
        texts = [strip_ends(text, ends) for text in (pair.chosen, pair.rejected)]
        if any(holds_end(text, ends) for text in texts):
            left_out[END_INSIDE] += 1
            continue
        replies = [split_reply(text) for text in texts]
        if not all(reply.answer.strip() for reply in replies):
            left_out[EMPTY] += 1
            continue
        chosen, rejected = (torch.tensor(encode(rendering(pair.prompt, reply)), dtype=torch.int32) for reply in replies)
        if max(len(chosen), len(rejected)) > maximum_tokens:
            left_out[f"longer than {maximum_tokens} tokens (training.sequence_length)"] += 1
        else:
            kept.append(TokenPair(pair, chosen, rejected))
    return kept, left_out


def pair_batch(pairs: Sequence[TokenPair]) -> PairBatch:
    """Makes one batch of the pairs. Packing them into micro-batches does not change the loss.

    Raises DataError when a margin is not finite in fp32, since it would make the whole step's loss so.
    """
    sequences = text_batch([text for pair in pairs for text in (pair.chosen, pair.rejected)])
    margins = torch.tensor([1.0 if pair.pair.margin is None else pair.pair.margin for pair in pairs])
    for pair, margin in zip(pairs, margins.tolist(), strict=True):
        if not math.isfinite(margin):
            raise DataError(
                "reward_model.pairs", f"pair {pair.pair.id!r} has the margin {pair.pair.margin!r}: remove it"
            )
    weights = torch.ones(len(sequences.tokens))
    return PairBatch(sequences, weights, len(pairs), [pair.pair.id for pair in pairs], margins)


def text_batch(texts: Sequence[torch.Tensor]) -> SequenceBatch:
    """Makes a batch of texts [n] int32 to be scored, with the mark after each text."""
    lengths = torch.tensor([len(text) + 1 for text in texts])
    mark = torch.tensor([_MARK], dtype=torch.int32)
    tokens = torch.cat([part for text in texts for part in (text, mark)]).long()
    return SequenceBatch(
        tokens=tokens,
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        prompt_lengths=lengths - 1,  # only the mark is a label
        behaviour_logprobs=torch.zeros(len(tokens)),
        advantages=torch.zeros(len(texts)),
        weights=torch.ones(len(texts)),
    )


class PairSource(Generic[P, B]):
    """The pairs epoch after epoch. Each epoch has its own order, which depends on the seed alone."""

    def __init__(
        self,
        pairs: Sequence[P],
        batch: Callable[[Sequence[P]], B],
        *,
        section: str,
        seed: int,
        shuffle: bool = True,
        epochs: float | None = None,
    ) -> None:
        """Takes the number of `epochs` after which the pairs are used up; None for no limit.

        `batch` makes one batch of tokenised pairs. `section`: the config's section, for errors.
        """
        self._pairs = pairs
        self._batch = batch
        self._section = section
        self._order = PromptOrder(len(pairs), seed, shuffle)
        self.total = None if epochs is None else math.ceil(round(epochs * len(pairs), 6))
        """Number of pairs in all epochs; None for no limit."""

    def __len__(self) -> int:
        """Returns the number of pairs in one epoch."""
        return len(self._pairs)

    def take(self, cursor: int, count: int) -> tuple[B, int]:
        """Returns the next `count` pairs (fewer at the end of the last epoch) and the cursor after them.

        Raises DataError when the last epoch is over.
        """
        stop = cursor + count if self.total is None else min(cursor + count, self.total)
        if stop <= cursor:
            epochs = f"{self._section}.epochs"
            raise DataError(f"{self._section}.pairs", f"all {cursor} pairs of {epochs} are taken: raise {epochs}")
        return self._batch([self._pairs[self._order[k]] for k in range(cursor, stop)]), stop
