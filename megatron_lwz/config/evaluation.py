"""Evaluation while a run trains."""

from __future__ import annotations

from pydantic import Field

from megatron_lwz.config.base import Section, Urls


class EvaluationSection(Section):
    """RL: held-out prompts, scored with the same rewards. Pretraining and SFT: the loss on data.validation."""

    interval: int = Field(
        0, ge=0, description="steps between evaluations; 0 = before the first and after the last step only"
    )
    samples: int = Field(1, gt=0, description="RL: rollouts per held-out prompt")
    concurrent: bool = Field(
        True,
        description="RL: evaluate beside training, on separate engines that keep the weights an evaluation began with; false: training waits while its own engines generate the evaluation rollouts",
    )
    urls: Urls = Field(
        (),
        description="RL, concurrent: URLs of running engines used only for evaluation; they must not be in rollout.urls and use the token of rollout.api_key_env; empty: one embedded engine is started for the first evaluation",
    )
    engine_threads: int = Field(
        0, ge=0, description="CPU threads of that embedded engine; 0 = the value of rollout.engine_threads"
    )
    most_begun: int = Field(
        2,
        gt=0,
        description="RL, concurrent: maximum number of unfinished evaluations, each with its weights on disk; at this limit training waits before it begins another",
    )
    quality: bool = Field(
        False,
        description="RL: the model of section `judge` rates every held-out answer in LongBench-Write's six dimensions (eval/quality/s_q); its replies are kept in the run folder",
    )
    sequences: int = Field(
        256, gt=0, description="pretraining, SFT: number of sequences per validation source, taken from its start"
    )
