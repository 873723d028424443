"""Tokenises preference pairs as the policy sees them, and makes batches of them, for preference optimisation.

The request is rendered as in reinforcement learning and fine-tuning (`data/templates.py`), and prompt and reply are
tokenised separately, so that a reply begins where a rollout would. Sequences 2p and 2p + 1 of a batch are the chosen and
the rejected reply of pair p, each after its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from megatron_lwz.data.preferences.pairs import PreferencePair
from megatron_lwz.data.replies import EMPTY, END_INSIDE, ENDS, LeftOut, clean, holds_end, strip_ends, thinks, wrap
from megatron_lwz.data.supervised import SupervisedBatch
from megatron_lwz.data.templates import Style, render
from megatron_lwz.types import Prompt, SequenceBatch


@dataclass(frozen=True)
class PolicyPair:
    """A preference pair as tokens: prompt, reply and one end-of-text token, [n] int32 each."""

    pair: PreferencePair
    prompt_length: int
    chosen: torch.Tensor
    rejected: torch.Tensor


@dataclass(frozen=True)
class ReplyForm:
    """How requests and replies become text (`data.template`, `dpo.*`).

    `ends` are the texts of the tokens that end a text.
    """

    style: Style = "paper"
    wrap_answer: bool = False
    separator: str = " "
    ends: Sequence[str] = ENDS

    def reply(self, text: str) -> str:
        """Returns the text that follows the assistant's marker, without an end-of-text token."""
        text = wrap(clean(text, self.ends)) if self.wrap_answer else strip_ends(text, self.ends)
        return text if text[:1].isspace() else self.separator + text


def tokenize_policy_pairs(
    pairs: Sequence[PreferencePair],
    encode: Callable[[str], list[int]],
    end: int,
    form: ReplyForm,
    *,
    maximum_tokens: int,
) -> tuple[list[PolicyPair], LeftOut]:
    """Returns (tokenised pairs, the pairs left out by reason): a reply is empty, goes on after a token that ends it, or
    is longer with its prompt than `maximum_tokens` tokens.

    A pair without a `template` of its own has that of its chosen reply: think if it begins with a think segment. `end`
    is the token at the end of both replies.
    """
    kept, left_out = [], LeftOut()
    for pair in pairs:
        replies = [form.reply(text) for text in (pair.chosen, pair.rejected)]
        if not all(reply.strip() for reply in replies):
            left_out[EMPTY] += 1
            continue
        if any(holds_end(reply, form.ends) for reply in replies):
            left_out[END_INSIDE] += 1
            continue
        template = pair.template or ("think" if thinks(replies[0]) else "direct")
        asked = encode(render(Prompt(pair.id, pair.prompt, template=template), form.style))
        chosen, rejected = (torch.tensor([*asked, *encode(reply), end], dtype=torch.int32) for reply in replies)
        if max(len(chosen), len(rejected)) > maximum_tokens:
            left_out[f"longer than {maximum_tokens} tokens (training.sequence_length)"] += 1
        else:
            kept.append(PolicyPair(pair, len(asked), chosen, rejected))
    return kept, left_out


def policy_pair_batch(pairs: Sequence[PolicyPair]) -> SupervisedBatch:
    """Makes one batch of the pairs; its `denominator` counts pairs, `ids` names them."""
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    prompts = torch.tensor([pair.prompt_length for pair in pairs]).repeat_interleave(2)
    lengths = torch.tensor([len(text) for text in texts])
    tokens = torch.cat(texts).long()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    place = torch.arange(len(tokens)) - offsets[:-1].repeat_interleave(lengths)
    sequences = SequenceBatch(
        tokens=tokens,
        offsets=offsets,
        prompt_lengths=prompts,
        behaviour_logprobs=torch.zeros(len(tokens)),
        advantages=torch.zeros(len(texts)),
        weights=torch.ones(len(texts)),
    )
    weights = (place >= prompts.repeat_interleave(lengths)).float()
    return SupervisedBatch(sequences, weights, len(pairs), [pair.pair.id for pair in pairs])
