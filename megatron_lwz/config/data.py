"""The input data of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_lwz.config.base import Paths, Section, UserPath
from megatron_lwz.config.curriculum import CurriculumSection


class DataSection(Section):
    """The input data of a run."""

    prompts: UserPath | None = Field(
        None, description="file of prompt rows: JSON lines, a JSON array or Parquet (docs/recipe.md)"
    )
    held_out_prompts: UserPath | None = Field(None, description="file of prompt rows used only for evaluation")
    corpus: Paths = Field((), description="pretraining: a manifest of `lwz corpus`, or files of rows with a `text` key")
    instructions: Paths = Field(
        (),
        description="SFT: files of messages, conversations, prompt + response, question + answer or instruction + output",
    )
    validation: dict[str, Paths] = Field(
        {},
        description="pretraining, SFT: source → files in the stage's format; their loss is computed every evaluation.interval steps",
    )
    shuffle: bool = Field(
        True, description="shuffle each epoch (seeded); the order does not depend on the parallel layout"
    )
    reset_attention: bool = Field(
        True,
        description="pretraining: attention and position ids restart at every document; false: a document attends to the documents packed before it (open)",
    )
    template: Literal["paper", "bare"] = Field(
        "paper",
        description="paper: instruction paragraph and role markers (A); bare: only the role markers, for tiny models",
    )
    prompt_template: Literal["think", "direct"] | None = Field(
        None,
        description="RL: use think (A) or direct for every prompt, overriding the prompt's row; null: the row decides",
    )
    max_prompt_tokens: int = Field(2048, gt=0, description="tokens; longer prompts are dropped and counted")
    curriculum: CurriculumSection = CurriculumSection()
