"""Tokenised pairs in a seeded order, as the batches of a reward model's training.

Sequences 2p and 2p + 1 of a batch are the chosen and the rejected text of pair p. Each ends with one token more than its
text: the label of the text's last token, and so the mark of where the score is read. It is never an input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from megatron_lwz.data.preferences.pairs import PreferencePair
from megatron_lwz.data.preferences.rendering import Rendering, split_reply
from megatron_lwz.data.prompts import PromptOrder
from megatron_lwz.data.supervised import SupervisedBatch
from megatron_lwz.errors import DataError
from megatron_lwz.types import SequenceBatch

_MARK = 0


@dataclass(frozen=True)
class TokenPair:
    """A pair as tokens [n] int32 of both whole texts."""

    pair: PreferencePair
    chosen: torch.Tensor
    rejected: torch.Tensor


@dataclass(frozen=True)
class PairBatch(SupervisedBatch):
    """A SupervisedBatch of pairs: `denominator` counts pairs, `ids` name them, `margins` [pairs] fp32 are theirs."""

    margins: torch.Tensor

    @property
    def predictions(self) -> int:
        """Tokens of the texts: all of them are read, and trained through their last one."""
        return int(self.sequences.tokens.numel()) - len(self.sequences)


def tokenize_pairs(
    pairs: Sequence[PreferencePair],
    encode: Callable[[str], list[int]],
    rendering: Rendering,
    *,
    maximum_tokens: int,
    fits: Callable[[tuple[int, int]], bool] = lambda _: True,
) -> tuple[list[TokenPair], int]:
    """(pairs as tokens, pairs left out): a pair with a text over `maximum_tokens`, or that does not fit, is left out."""
    kept, dropped = [], 0
    for pair in pairs:
        texts = (rendering(pair.prompt, split_reply(text)) for text in (pair.chosen, pair.rejected))
        chosen, rejected = (torch.tensor(encode(text), dtype=torch.int32) for text in texts)
        sizes = (len(chosen), len(rejected))
        if max(sizes) > maximum_tokens or min(sizes) == 0 or not fits(sizes):
            dropped += 1
        else:
            kept.append(TokenPair(pair, chosen, rejected))
    return kept, dropped


def pair_batch(pairs: Sequence[TokenPair]) -> PairBatch:
    """Pairs as one batch; packing them into micro-batches changes nothing."""
    sequences = text_batch([text for pair in pairs for text in (pair.chosen, pair.rejected)])
    margins = torch.tensor([1.0 if pair.pair.margin is None else pair.pair.margin for pair in pairs])
    weights = torch.ones(len(sequences.tokens))
    return PairBatch(sequences, weights, len(pairs), [pair.pair.id for pair in pairs], margins)


def text_batch(texts: Sequence[torch.Tensor]) -> SequenceBatch:
    """Texts [n] int32 to be scored, each with the mark behind it."""
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


class PairSource:
    """Epoch after epoch of the pairs, each in its own order, which depends on the seed alone."""

    def __init__(
        self, pairs: Sequence[TokenPair], *, seed: int, shuffle: bool = True, epochs: float | None = None
    ) -> None:
        """`epochs` bounds what is taken in all; None: no end."""
        self._pairs = pairs
        self._order = PromptOrder(len(pairs), seed, shuffle)
        self.total = None if epochs is None else math.ceil(round(epochs * len(pairs), 6))
        """Pairs in all epochs."""

    def __len__(self) -> int:
        """Pairs of one epoch."""
        return len(self._pairs)

    def take(self, cursor: int, count: int) -> tuple[PairBatch, int]:
        """The next `count` pairs (fewer at the end of the last epoch) and the cursor after them. Raises DataError."""
        stop = cursor + count if self.total is None else min(cursor + count, self.total)
        if stop <= cursor:
            raise DataError(
                "reward_model.pairs", f"all {cursor} pairs of reward_model.epochs are taken: raise reward_model.epochs"
            )
        return pair_batch([self._pairs[self._order[k]] for k in range(cursor, stop)]), stop
