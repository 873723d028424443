"""Evaluation while a run trains."""

from __future__ import annotations

from pydantic import Field

from megatron_lwz.config.base import Section


class EvaluationSection(Section):
    """RL: held-out prompts, scored with the same rewards. Pretraining and SFT: the loss on data.validation."""

    interval: int = Field(
        0, ge=0, description="steps between evaluations; 0 = before the first and after the last step only"
    )
    samples: int = Field(1, gt=0, description="RL: rollouts per held-out prompt")
    concurrent: bool = Field(
        True,
        description="RL: beside training, by engines of their own that keep the weights they began with; false: training waits while its own engines write",
    )
    urls: tuple[str, ...] = Field(
        (),
        description="RL, concurrent: running engines for evaluations alone, which rollout.urls must not name, with the token of rollout.api_key_env; empty: one embedded engine is started for the first evaluation",
    )
    engine_threads: int = Field(0, ge=0, description="CPU threads of that embedded engine; 0 = rollout.engine_threads")
    most_begun: int = Field(
        2,
        gt=0,
        description="RL, concurrent: evaluations that may be unfinished, each with its weights on disk; training waits rather than begin one more",
    )
    quality: bool = Field(
        False,
        description="RL: `judge` rates every held-out answer in LongBench-Write's six dimensions, eval/quality/s_q; replies are kept in the run folder",
    )
    sequences: int = Field(256, gt=0, description="pretraining, SFT: sequences per validation source, from its start")
