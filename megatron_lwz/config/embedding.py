"""Rewards that compare texts by embeddings, and how far siblings are from each other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_lwz.config.base import CommaList, ComponentSection, Fraction, Url, UserPath, Variable


class EmbeddingSection(ComponentSection):
    """The settings of every component that embeds texts."""

    url: Url | None = Field(None, description="server with OpenAI's /v1/embeddings, e.g. http://127.0.0.1:8000/v1")
    hf: UserPath | None = Field(
        None,
        description="Hugging Face folder of a local encoder that runs on the CPU; a paragraph's embedding is the mean of the last hidden states",
    )
    model: str = Field("", description="model name sent to the server")
    api_key_env: Variable = Field("LWZ_EMBEDDINGS_KEY", description="environment variable with the server's API key")
    batch: int = Field(64, gt=0, description="paragraphs per request, or per forward pass of the local encoder")
    concurrency: int = Field(8, gt=0, description="maximum number of concurrent requests")
    timeout: float = Field(60.0, gt=0, description="timeout of one request, in seconds")
    retries: int = Field(
        3, ge=0, description="maximum retries of a failed request; after that, the group's scores are masked"
    )
    backoff: float = Field(0.5, gt=0, description="seconds before the first retry; doubles with each further retry")


class OverlapReward(EmbeddingSection):
    """1 − the share of paragraphs that mean the same as an earlier one, by embeddings (B).

    Off until `url` or `hf` is given.
    """

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

    @property
    def used(self) -> bool:
        """Whether the component is part of the run."""
        return self.url is not None or self.hf is not None


class DiversityReward(EmbeddingSection):
    """How far an answer is from the other answers of its group, 0 to 1 (DARLING, 2509.02534). Off until `distance` is given."""

    distance: Literal["ngram", "embedding"] | None = Field(
        None,
        description="ngram: 1 − the Jaccard similarity of 4-grams, as rollout/sameness, no model; embedding: 1 − the cosine of the answers' mean embeddings, from url or hf (DARLING: a trained classifier); null: no such component",
    )
    same: Fraction | None = Field(
        None,
        description="two answers are of one class from this similarity on, and classes are closed; the distance is then 0 inside a class and 1 between two, as in DARLING; null: the distance itself; open",
    )
    use: Literal["rescale", "component"] = Field(
        "rescale",
        description="rescale: not averaged; the scores of `rescales` are multiplied by it before their normalisation (DARLING: quality × diversity); component: one of the averaged components",
    )
    rescales: Annotated[tuple[str, ...], CommaList] = Field(
        (),
        description="components that `use: rescale` multiplies; empty: all that rate quality, that is all but length, format, overlap, structure and consistency",
    )
    most_paragraphs: int = Field(
        32,
        gt=0,
        description="maximum number of paragraphs embedded per answer, taken at equal distances over the whole text; open",
    )

    @property
    def used(self) -> bool:
        """Whether the component is part of the run."""
        return self.distance is not None
