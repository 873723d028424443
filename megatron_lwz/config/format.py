"""Rewards for the form of a text: its segments, repetitions, headings and lists."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_lwz.config.base import CommaList, ComponentSection, Fraction, Url, UserPath, Variable


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


class OverlapReward(ComponentSection):
    """1 − the share of paragraphs that mean the same as an earlier one, by embeddings (B).

    Off until `url` or `hf` is given.
    """

    url: Url | None = Field(None, description="server with OpenAI's /v1/embeddings, e.g. http://127.0.0.1:8000/v1")
    hf: UserPath | None = Field(
        None,
        description="Hugging Face folder of a local encoder that runs on the CPU; a paragraph's embedding is the mean of the last hidden states",
    )
    model: str = Field("", description="model name sent to the server")
    api_key_env: Variable = Field("LWZ_EMBEDDINGS_KEY", description="environment variable with the server's API key")
    threshold: Fraction = Field(
        0.9,
        description="two paragraphs have the same meaning from this cosine similarity on; depends on the model; open",
    )
    minimum_units: int = Field(
        20, gt=0, description="paragraphs of fewer words + CJK characters are not compared; open"
    )
    longest_paragraph: int = Field(
        300,
        ge=0,
        description="a line with more words + CJK characters than this is split into sentences; 0 = never; open",
    )
    most_paragraphs: int = Field(
        400, gt=1, description="maximum number of paragraphs compared per text, counted from its start"
    )
    batch: int = Field(64, gt=0, description="paragraphs per request, or per forward pass of the local encoder")
    concurrency: int = Field(8, gt=0, description="maximum number of concurrent requests")
    timeout: float = Field(60.0, gt=0, description="timeout of one request, in seconds")
    retries: int = Field(
        3, ge=0, description="maximum retries of a failed request; after that, the group's scores are masked"
    )
    backoff: float = Field(0.5, gt=0, description="seconds before the first retry; doubles with each further retry")

    @property
    def used(self) -> bool:
        """Whether the component is part of the run."""
        return self.url is not None or self.hf is not None


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
