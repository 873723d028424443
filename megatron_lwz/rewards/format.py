"""The format reward (LongWriter-Zero, section 3.1): the think/answer structure, minus near-duplicate paragraphs.

Policies also copy the instruction of the prompt template into the tags: the form is right and nothing is written. The
share that is copied is measured, and may be subtracted too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from megatron_lwz.config.sections import FormatReward
from megatron_lwz.data.templates import instruction
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.data.text.length import count_units
from megatron_lwz.data.text.near_duplicates import DuplicateReport, find_duplicates, share_copied, shingles
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.rewards.per_rollout import PerRollout
from megatron_lwz.types import ComponentScore, Prompt, Rollout


def count_duplicates(text: str, section: FormatReward) -> DuplicateReport:
    """Returns the near-duplicate paragraphs of an answer, as the config defines them."""
    return find_duplicates(
        text,
        threshold=section.duplicate_threshold,
        shingle=section.shingle,
        minimum_shingles=section.minimum_shingles,
        longest=section.longest_paragraph,
    )


COPIED_SHINGLE = 6
"""Words (CJK: characters) in a row that count as copied from the instruction."""


class FormatComponent(PerRollout):
    """1 for a well-formed response, else 0, minus a penalty for what is written twice or copied from the instruction.

    Penalty: `duplicate_penalty` × share of near-duplicate paragraphs of the answer + `copied_penalty` × share of thinking
    and answer that stands in the template's instruction. It applies to malformed responses too, so the value may be
    negative. An answer that the stop string `</answer>` ended counts as closed. One that ended at EOS or at the token
    limit does not. Details: `valid`, `duplicates` and `copied` (shares), `think_length` (in the length reward's unit),
    `think_tokens` (with a tokenizer), `answer_closed`.
    """

    name = "format"

    def __init__(
        self, section: FormatReward, measure: Callable[[str], int] = count_units, tokenizer: Tokenizer | None = None
    ) -> None:
        """Takes `measure` and `tokenizer`, which count the think segment for the metrics."""
        self._section = section
        self._measure = measure
        self._tokenizer = tokenizer

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        """Returns one score per rollout, always valid.

        Runs in a thread, so that long texts do not block the rollouts' streams.
        """
        return await asyncio.to_thread(self._score_all, prompt, rollouts)

    def _score_all(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        given = shingles(instruction(prompt), COPIED_SHINGLE)
        return [self._score_one(prompt, rollout, given) for rollout in rollouts]

    def _score_one(self, prompt: Prompt, rollout: Rollout, given: frozenset[int]) -> ComponentScore:
        parsed = parse_rollout(prompt, rollout)
        report = count_duplicates(parsed.answer or "", self._section)
        said = f"{parsed.think or ''}\n{parsed.answer or ''}"
        copied = share_copied(said, given, COPIED_SHINGLE)
        details = {
            "valid": float(parsed.valid),
            "duplicates": report.share,
            "copied": copied,
            "think_length": float(self._measure(parsed.think or "")),
            "answer_closed": float(parsed.answer_closed),
        }
        if self._tokenizer is not None:
            details["think_tokens"] = float(len(self._tokenizer.encode(parsed.think or "")))
        penalty = self._section.duplicate_penalty * report.share + self._section.copied_penalty * copied
        return ComponentScore(float(parsed.valid) - penalty, details=details)
