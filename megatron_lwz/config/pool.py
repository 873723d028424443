"""Several engines: when an engine is excluded, how long the run waits without any, and the rollouts per engine."""

from __future__ import annotations

from pydantic import Field

from megatron_lwz.config.base import Fraction, Section


class PoolSection(Section):
    """Health and load of the engines."""

    probe_interval: float = Field(5.0, gt=0, description="seconds between two probes of an engine (/health, /metrics)")
    probe_timeout: float = Field(20.0, gt=0, description="seconds after which an unanswered probe counts as missed")
    missed_probes: int = Field(
        3,
        gt=0,
        description="consecutive missed probes after which an engine is excluded; an engine that refuses connections is excluded at once",
    )
    failed_requests: int = Field(
        8, gt=0, description="consecutive failed requests after which an engine is excluded even if it answers probes"
    )
    wait: float = Field(
        900.0, ge=0, description="seconds that the run waits while no engine answers; after that the run ends"
    )
    restarts: int = Field(
        5,
        ge=0,
        description="maximum consecutive restarts of an embedded engine that ended, without a finished rollout in between",
    )
    adaptive: bool = Field(
        True,
        description="reduce the rollouts of an engine below rollout.concurrency while its key-value cache is full, and increase them again when there is room",
    )
    least_concurrency: int = Field(8, gt=0, description="lower limit of adaptive, in rollouts per engine")
    kv_low: Fraction = Field(
        0.8, description="an engine's limit increases after a round in which its cache use never exceeded this fraction"
    )
    kv_high: Fraction = Field(
        0.95,
        description="an engine's limit decreases from this fraction of cache use on, and also on preemption or queued requests",
    )
