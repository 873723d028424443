"""Replies as they stand in data sets: what is taken off them, and which of them are no whole reply.

A reply is written by a person or a model, and stored with whatever stood around it: tokens that end a text, an empty
think segment, thinking that was cut off. Fine-tuning and reward models read replies through this module.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from megatron_lwz.data.text.grammar import parse_response
from megatron_lwz.data.tokenizer import Tokenizer

_OTHERS = "give other rows"
ENDS = ("<|endoftext|>", "<|im_end|>")
"""Texts of the tokens that end a text in Qwen2.5's files. A stage adds those of its own tokenizer."""

EMPTY = "with an empty reply"
CUT_THINKING = "with thinking that is cut off"
CUT_ANSWER = "with an answer that is cut off"
OTHER_THINKING = "with thinking in other tags than <think>"
END_INSIDE = "with an end-of-text token inside a reply"

_NO_THINKING = re.compile(r"\s*<think>\s*</think>\s*")
_OTHER_THINKING = re.compile(r"\s*(?:<(?:thinking|thoughts?|reasoning)>|<\|begin_of_thought\|>|\[THINK\])", re.I)
_NO_ANSWER = re.compile(r"\s*<answer>\s*(?:</answer>\s*)?")


class LeftOut(Counter[str]):
    """Counts rows that are left out, by reason. As a text: "3 left out (2 tied, 1 with an empty reply)"."""

    def __str__(self) -> str:
        reasons = self.reasons
        return f"{self.total()} left out ({reasons})" if reasons else "0 left out"

    @property
    def reasons(self) -> str:
        """The counts of all reasons, the most frequent first."""
        return ", ".join(f"{count} {reason}" for reason, count in self.most_common())

    def all_of(self, total: int) -> str:
        """Returns the advice for the case that all `total` rows are left out."""
        return f"none of {total} rows can be used: {self.reasons}; {_OTHERS}" if total else f"holds no row: {_OTHERS}"


def clean(reply: str, ends: Collection[str] = ENDS) -> str:
    """Returns a reply without tokens that end a text, and with its think segment in the usual form.

    An empty think segment is removed. Where the opening tag is missing, because the prompt held it, it is added.
    """
    reply = strip_ends(reply, ends)
    if "</think>" in reply and "<think>" not in reply:
        reply = f"<think>{reply}"
    empty = _NO_THINKING.match(reply)
    return reply[empty.end() :] if empty else reply


def end_texts(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Returns the texts of all tokens that end a text: Qwen2.5's, and those of this tokenizer."""
    own = (tokenizer.decode([number], skip_special=False).strip() for number in sorted(tokenizer.eos_ids))
    marks = [text for text in own if len(text) > 1 and not text.isalnum()]  # a plain word may end any reply
    return tuple(dict.fromkeys((*ENDS, *marks)))


def strip_ends(text: str, ends: Collection[str] = ENDS) -> str:
    """Returns the text without tokens that end it, and without white space before them."""
    bare = text.rstrip()
    while (end := next((end for end in ends if end and bare.endswith(end)), None)) is not None:
        text = bare = bare.removesuffix(end).rstrip()
    return text


def holds_end(text: str, ends: Collection[str] = ENDS) -> bool:
    """Returns whether a token that ends a text stands anywhere in it."""
    return any(end in text for end in ends if end)


def thinks(reply: str) -> bool:
    """Returns whether a reply begins with a think segment."""
    return reply.lstrip().startswith("<think>")


def find_fault(reply: str) -> str | None:
    """Returns why a clean reply is no whole reply (empty, or only thinking), else None."""
    if _OTHER_THINKING.match(reply):
        return OTHER_THINKING
    if thinks(reply) and "</think>" not in reply:
        return CUT_THINKING
    rest = reply.partition("</think>")[2] if thinks(reply) else reply
    return EMPTY if not rest.strip() or _NO_ANSWER.fullmatch(rest) else None


def find_target_fault(
    reply: str, *, wrapped: bool, ends: Sequence[str] = ENDS, quoted: Collection[str] = ()
) -> str | None:
    """Returns why a clean reply cannot be a target of fine-tuning, else None.

    `wrapped` replies must follow the grammar of rewarded responses (`data/text/grammar.py`) once they have their tags.
    They may name the tags in `quoted`.
    """
    fault = find_fault(reply)
    if fault is not None and (wrapped or fault != OTHER_THINKING):
        return fault
    if holds_end(reply, ends):
        return END_INSIDE
    rest = reply.partition("</think>")[2] if thinks(reply) else reply
    if rest.lstrip().startswith("<answer>") and "</answer>" not in rest:
        return CUT_ANSWER
    if not wrapped:
        return None
    parsed = parse_response(wrap(reply), "think" if thinks(reply) else "direct", quoted=quoted)
    return None if parsed.valid else f"in another form than <think>…</think> <answer>…</answer> ({parsed.fault})"


def wrap(reply: str) -> str:
    """Returns the reply in the form that the templates ask for: a reply without tags is put inside the answer tags."""
    if "<answer>" in reply or find_fault(reply) == CUT_THINKING:
        return reply
    think, closed, piece = reply.partition("</think>") if thinks(reply) else ("", "", reply)
    return f"{think}{closed}{' ' if closed else ''}<answer>{piece.strip() if closed else piece}</answer>"
