"""Sampling and the engines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_lwz.config.base import Section
from megatron_lwz.config.guard import GuardSection
from megatron_lwz.config.lengths import LengthsSection
from megatron_lwz.config.pool import PoolSection

RetryClass = Literal["connection", "timeout", "server", "contract", "refused"]
"""The classes of http.retry.Failure."""


class RolloutSection(Section):
    """Sampling and the engines."""

    engine: Literal["embedded", "vllm"] = Field(
        "embedded", description="embedded: started by the run itself; vllm: give `urls` or `engines_file`"
    )
    urls: tuple[str, ...] = Field((), description="engines already running, e.g. http://127.0.0.1:8000")
    engines_file: str | None = Field(
        None,
        description="instead of urls: a file with one URL per line, read again when it changes, so that engines come and go",
    )
    api_key_env: str = Field("LWZ_ENGINE_TOKEN", description="environment variable that holds the engines' token")
    temperature: float = Field(0.8, gt=0, description="paper: 0.8 (B)")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1.0,
        description="paper: 1.0 (B); below 1 the behaviour log-prob is not the policy's, and the loss must correct it",
    )
    max_new_tokens: int = Field(14_000, gt=0, description="paper: 14,000 (B)")
    stop: tuple[str, ...] = Field(
        ("</answer>", "<|user|>", "<|用户|>"), description="stop strings; the model card's (A)"
    )
    max_staleness: int = Field(
        0, ge=0, description="steps that may lie between a group's admission and its training; 0 = synchronous"
    )
    over_sampling: float | None = Field(
        None,
        gt=0,
        description="batches admitted beyond the one awaited, whose groups may overtake each other within max_staleness; null: max_staleness batches, trained strictly in order",
    )
    failed_groups: int = Field(
        0,
        ge=0,
        description="groups that a process may give up and replace when their requests keep failing; then the run ends",
    )
    concurrency: int = Field(128, gt=0, description="rollouts in flight per engine")
    request_timeout: float = Field(600.0, gt=0, description="seconds without any token before a request is retried")
    retries: int = Field(
        5,
        ge=0,
        description="attempts per rollout after failures in a row of one class, each from its last durable token",
    )
    retry_limits: dict[RetryClass, Annotated[int, Field(ge=0)]] = Field(
        {},
        description="retries of single classes: connection, timeout, server (5xx, 408, 429), contract (an answer that is not understood; 1 unless named), refused (other 4xx; 0 unless named)",
    )
    pool: PoolSection = PoolSection()
    commit_interval: float = Field(0.5, gt=0, description="seconds between durable journal commits")
    journal_backlog: int = Field(
        1_000_000,
        gt=0,
        description="tokens received that may wait for a slow disk; beyond that the streams are read no further",
    )
    controller: Literal["thread", "process"] = Field(
        "thread",
        description="where engines, journal and rewards are attended to: in a thread of trainer rank 0, which shares its interpreter with training, or in a process of its own (docs/rollouts.md)",
    )
    network_journal: bool = Field(False, description="run folder on NFS or Lustre: the journal takes an exclusive lock")
    colocated: bool = Field(
        False,
        description="the engines share the trainer's GPUs: they sleep while it trains, and it leaves the GPU while they write",
    )
    engine_threads: int = Field(0, ge=0, description="CPU threads of the embedded engine; 0 = all cores")
    guard: GuardSection = GuardSection()
    lengths: LengthsSection = LengthsSection()

    @property
    def elsewhere(self) -> bool:
        """Whether the engines run already, started by somebody else."""
        return bool(self.urls) or self.engines_file is not None
