"""What is read."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_lwz.config.base import Section


class DataSection(Section):
    """What is read."""

    prompts: str | None = Field(None, description="JSONL of prompt rows")
    held_out_prompts: str | None = Field(None, description="JSONL of prompt rows used only for evaluation")
    corpus: tuple[str, ...] = Field(
        (), description="pretraining: a manifest of tools/prepare_corpus.py, or JSONL files with a `text` key"
    )
    instructions: tuple[str, ...] = Field(
        (), description="SFT: JSONL files of messages, conversations, prompt + response or instruction + output"
    )
    validation: dict[str, tuple[str, ...]] = Field(
        {},
        description="pretraining, SFT: source → JSONL files in the stage's format, for the loss every evaluation.interval",
    )
    shuffle: bool = Field(True, description="shuffle each epoch (seeded); the order does not depend on the layout")
    reset_attention: bool = Field(
        True,
        description="pretraining: attention and positions begin anew with every document; false: a document sees those packed before it (open)",
    )
    template: Literal["paper", "bare"] = Field(
        "paper",
        description="paper: instruction paragraph and role markers (A); bare: the markers alone, for tiny models",
    )
    prompt_template: Literal["think", "direct"] | None = Field(
        None,
        description="RL: think (A) or direct for every prompt, in place of what its row says; null: the row decides",
    )
    max_prompt_tokens: int = Field(2048, gt=0, description="longer prompts are dropped and counted")
