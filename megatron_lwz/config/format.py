"""What is rewarded about the form of a text: its segments, its repetitions, its headings and lists."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_lwz.config.base import ComponentSection, Fraction


class FormatReward(ComponentSection):
    """One think segment, one answer segment, no near-duplicate paragraphs (section 3.1; docs/format.md)."""

    duplicate_penalty: Fraction = Field(
        0.5, description="subtracted times the share of near-duplicate paragraphs; open"
    )
    duplicate_threshold: Fraction = Field(
        0.6, description="Jaccard similarity from which two paragraphs are near-duplicates; open"
    )
    shingle: int = Field(3, gt=0, description="n-gram size: words, or characters in CJK text; open")
    minimum_shingles: int = Field(8, gt=0, description="paragraphs of fewer n-grams are not compared; open")
    longest_paragraph: int = Field(
        300,
        ge=0,
        description="a line of more words + CJK characters is compared sentence by sentence, so that a loop without line breaks is seen; 0 = never; open",
    )


class OverlapReward(ComponentSection):
    """1 − the share of paragraphs that mean the same as an earlier one, by embeddings (B). Off until `url` or `hf` is given."""

    url: str | None = Field(None, description="server with OpenAI's /v1/embeddings, e.g. http://127.0.0.1:8000/v1")
    hf: str | None = Field(
        None, description="a local encoder's Hugging Face folder, run on the CPU: mean of the last hidden states"
    )
    model: str = Field("", description="name that the server knows the model by")
    api_key_env: str = Field("LWZ_EMBEDDINGS_KEY", description="environment variable that holds the server's key")
    threshold: Fraction = Field(
        0.9, description="cosine similarity from which two paragraphs mean the same; differs between models; open"
    )
    minimum_units: int = Field(
        20, gt=0, description="words + CJK characters; shorter paragraphs are not compared; open"
    )
    longest_paragraph: int = Field(
        300, ge=0, description="a line of more words + CJK characters is cut into sentences; 0 = never; open"
    )
    most_paragraphs: int = Field(400, gt=1, description="paragraphs per text that are compared, from its start")
    batch: int = Field(64, gt=0, description="paragraphs per request, or per forward pass of the local encoder")
    concurrency: int = Field(8, gt=0, description="requests under way at once")
    timeout: float = Field(60.0, gt=0, description="seconds for one answer")
    retries: int = Field(3, ge=0, description="attempts per request after failures; then the group's scores are masked")
    backoff: float = Field(0.5, gt=0, description="seconds before the first retry; doubles")

    @property
    def used(self) -> bool:
        """Whether the component is part of the run."""
        return self.url is not None or self.hf is not None


class StructureReward(ComponentSection):
    """Headings and lists that are well made: the mean of the checks that the text gives occasion to. Off until `checks` has some."""

    checks: tuple[Literal["headings", "numbering", "lists", "asked"], ...] = Field(
        (),
        description="headings: levels, names, text below each; numbering: chapters and items count on by one; lists: one marker, no single or empty item; asked: the row's `structure` (docs/format.md); open",
    )

    @property
    def used(self) -> bool:
        """Whether the component is part of the run."""
        return bool(self.checks)
