"""Rewards for the form of a text: its segments, repetitions, headings and lists."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_lwz.config.base import CommaList, ComponentSection, Fraction


class FormatReward(ComponentSection):
    """One think segment, one answer segment, no near-duplicate paragraphs (section 3.1; docs/format.md)."""

    duplicate_penalty: Fraction = Field(
        0.5, description="this times the share of near-duplicate paragraphs is subtracted from the reward; open"
    )
    copied_penalty: Fraction = Field(
        0.0,
        description="this times the share of thinking and answer that is copied from the template's instruction is subtracted from the reward; open",
    )
    duplicate_threshold: Fraction = Field(
        0.6, description="two paragraphs are near-duplicates from this Jaccard similarity on; open"
    )
    shingle: int = Field(3, gt=0, description="n-gram size, in words, or in characters for CJK text; open")
    minimum_shingles: int = Field(8, gt=0, description="paragraphs of fewer n-grams are not compared; open")
    longest_paragraph: int = Field(
        300,
        ge=0,
        description="a line with more words + CJK characters than this is compared sentence by sentence, so that a loop without line breaks is detected; 0 = never; open",
    )

    @property
    def is_form_alone(self) -> bool:
        """Whether the reward depends on the tags alone, so that a fault that cannot be undone decides it."""
        return self.duplicate_penalty == 0 and self.copied_penalty == 0


class ConsistencyReward(ComponentSection):
    """1 − penalty × the contradictions that rules find in the answer (after ConStory-Bench's kinds, 2603.05890). Off until `checks` is not empty."""

    checks: Annotated[tuple[Literal["facts", "calendar"], ...], CommaList] = Field(
        (),
        description="facts: years of birth, death and founding, ages in a year, and sizes of one name; calendar: days that do not exist, weekdays that do not fit their date; open",
    )
    penalty: Fraction = Field(0.25, description="subtracted from the reward for each contradiction, down to 0; open")

    @property
    def used(self) -> bool:
        """Whether the component is part of the run."""
        return bool(self.checks)


class StructureReward(ComponentSection):
    """Mean of the `checks` that apply to the text's headings and lists. Off until `checks` is not empty."""

    checks: Annotated[tuple[Literal["headings", "numbering", "lists", "asked"], ...], CommaList] = Field(
        (),
        description="headings: levels, names, text below each; numbering: chapters and items are numbered consecutively; lists: one marker style, no single or empty item; asked: the row's `structure` (docs/format.md); open",
    )

    @property
    def used(self) -> bool:
        """Whether the component is part of the run."""
        return bool(self.checks)
