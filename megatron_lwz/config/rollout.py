"""Sampling and the engines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_lwz.config.base import OneOrList, Section, Urls, UserPath, Variable
from megatron_lwz.config.guard import GuardSection
from megatron_lwz.config.lengths import LengthsSection
from megatron_lwz.config.pool import PoolSection

RetryClass = Literal["connection", "timeout", "server", "contract", "refused"]
"""The classes of http.retry.Failure."""


class RolloutSection(Section):
    """Sampling and the engines."""

    engine: Literal["embedded", "vllm"] = Field(
        "embedded", description="embedded: the run starts the engine itself; vllm: requires `urls` or `engines_file`"
    )
    urls: Urls = Field((), description="URLs of engines that are already running, e.g. http://127.0.0.1:8000")
    engines_file: UserPath | None = Field(
        None,
        description="alternative to urls: a file with one URL per line, read again when it changes, so that engines can join and leave",
    )
    api_key_env: Variable = Field("LWZ_ENGINE_TOKEN", description="environment variable with the engines' token")
    temperature: float = Field(0.8, gt=0, description="sampling temperature; paper: 0.8 (B)")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1.0,
        description="nucleus sampling; paper: 1.0 (B); below 1 the behaviour log-prob is not the policy's, and the loss must correct it",
    )
    max_new_tokens: int = Field(14_000, gt=0, description="maximum tokens of a response; paper: 14,000 (B)")
    stop: Annotated[tuple[str, ...], OneOrList] = Field(
        ("</answer>", "<|user|>", "<|用户|>"), description="stop strings; those of the model card (A)"
    )
    max_staleness: int = Field(
        0, ge=0, description="maximum steps between a group's admission and its training; 0 = synchronous"
    )
    over_sampling: float | None = Field(
        None,
        gt=0,
        description="batches admitted in addition to the one that training waits for; their groups may overtake each other within max_staleness; null: max_staleness batches, trained strictly in order",
    )
    failed_groups: int = Field(
        0,
        ge=0,
        description="maximum groups per process that are given up and replaced when their requests keep failing; one more ends the run",
    )
    concurrency: int = Field(128, gt=0, description="rollouts in flight per engine")
    request_timeout: float = Field(
        600.0, gt=0, description="seconds without a new token after which a request is retried"
    )
    retries: int = Field(
        5,
        ge=0,
        description="maximum retries of a rollout after consecutive failures of one class; each retry resumes at the last durable token",
    )
    retry_limits: dict[RetryClass, Annotated[int, Field(ge=0)]] = Field(
        {},
        description="failure class → maximum retries: connection, timeout, server (5xx, 408, 429), contract (the answer does not follow the API; default 1), refused (other 4xx; default 0)",
    )
    pool: PoolSection = PoolSection()
    commit_interval: float = Field(0.5, gt=0, description="seconds between durable journal commits")
    journal_backlog: int = Field(
        1_000_000,
        gt=0,
        description="maximum received tokens that wait for a slow disk; at this limit, no more is read from the streams",
    )
    controller: Literal["thread", "process"] = Field(
        "thread",
        description="where engines, journal and rewards are handled: thread: in a thread of trainer rank 0, which shares its interpreter with training; process: in a separate process (docs/rollouts.md)",
    )
    network_journal: bool = Field(
        False, description="set if the run folder is on NFS or Lustre: the journal takes an exclusive lock"
    )
    new_journal: bool = Field(
        False,
        description="go on without the journal if it is lost, damaged or of another run: it is kept as journal.sqlite.lost, and a new one begins at the checkpoint's step; false: such a journal is an error",
    )
    colocated: bool = Field(
        False,
        description="the engines share the trainer's GPUs: they sleep while it trains, and the trainer releases the GPU memory while they generate",
    )
    engine_threads: int = Field(0, ge=0, description="CPU threads of the embedded engine; 0 = all cores")
    guard: GuardSection = GuardSection()
    lengths: LengthsSection = LengthsSection()

    @property
    def elsewhere(self) -> bool:
        """Whether the engines were started by somebody else and run already."""
        return bool(self.urls) or self.engines_file is not None
