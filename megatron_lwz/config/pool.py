"""Several engines: when one is taken out, how long the run waits without any, and how many rollouts each is given."""

from __future__ import annotations

from pydantic import Field

from megatron_lwz.config.base import Fraction, Section


class PoolSection(Section):
    """Health and load of the engines."""

    probe_interval: float = Field(5.0, gt=0, description="seconds between two probes of an engine (/health, /metrics)")
    probe_timeout: float = Field(20.0, gt=0, description="seconds until a probe without an answer counts as missed")
    missed_probes: int = Field(
        3,
        gt=0,
        description="probes missed in a row until an engine is out; one that refuses connections is out at once",
    )
    failed_requests: int = Field(
        8, gt=0, description="requests failed in a row until an engine is out although it answers probes"
    )
    wait: float = Field(900.0, ge=0, description="seconds that the run waits while no engine answers; then it ends")
    restarts: int = Field(
        5,
        ge=0,
        description="times in a row, without a finished rollout, that an ended embedded engine is started again",
    )
    adaptive: bool = Field(
        True,
        description="fewer rollouts than rollout.concurrency for an engine whose key-value cache is full, more again when it has room",
    )
    least_concurrency: int = Field(8, gt=0, description="rollouts per engine that adaptive never goes below")
    kv_low: Fraction = Field(
        0.8, description="a limit grows after a round in which the cache was never used beyond this fraction"
    )
    kv_high: Fraction = Field(
        0.95,
        description="fraction of the cache from which the limit shrinks, as it does on preemption and where requests queue",
    )
