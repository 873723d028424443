"""What is rehearsed, and what was seen: plain data that travels as JSON. Needs neither torch nor Megatron-Core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

STAGES = ("grpo", "sft", "pretrain", "reward_model", "dpo", "score", "decode", "export", "buckets", "checkpoint")
"""`grpo` to `dpo`: one optimizer step. `score`: log-probs of given tokens. `decode`: the embedded engine
writes tokens, with recorded steps. `export`: the policy to host memory.
`buckets`: the policy packed for engines (NCCL). `checkpoint`: a load, and saves with and without a copy."""


@dataclass(frozen=True)
class Case:
    """One rank of one stage of a config."""

    name: str
    config: Mapping[str, Any]
    """The config's tree. Names of files in it are not read."""
    stage: str = "grpo"
    world: int = 1
    rank: int = 0
    sequence: int | None = None
    """Tokens of each sequence; None: half of `training.tokens_per_micro_batch`, so that a pack holds two."""
    micro_batches: int = 2
    """Packs per data-parallel rank and step."""
    fill: bool = False
    """Whether a shorter sequence fills what sequences of that length leave of a pack."""
    then: Sequence[str] = ()
    """Stages that follow on the same state, e.g. `export` after the step."""
    fault: str | None = None
    """`package.module:function` that is called with the fake device before the stage, for tests."""


@dataclass(frozen=True)
class WaitRow:
    """Waits of the host for the GPU at one line, in one phase."""

    phase: str
    what: str
    place: str
    """File and function."""
    line: int
    count: int


@dataclass(frozen=True)
class TransferRow:
    """Collectives of one kind over one group, in one phase."""

    phase: str
    operation: str
    group: str
    """tensor, context, pipeline, data (data × context), all or other."""
    ranks: int
    """Ranks of the group."""
    count: int
    bytes: int
    """Of the whole tensors, all calls together: what an all-gather gives, what a reduce-scatter takes."""


@dataclass(frozen=True)
class Report:
    """What the rehearsal of a case counted. Sizes are bytes of one rank."""

    name: str
    error: str | None = None
    """Why it failed, in one line; None: it passed."""
    detail: str = ""
    """The traceback of a failure."""
    parameters: int = 0
    peak: int = 0
    """Highest allocated device memory, without NCCL's buffers, the CUDA context and fragmentation."""
    host_peak: int = 0
    """Highest host memory of tensors that a run would allocate there."""
    grown: int = 0
    """Memory that the rehearsing process itself took: of real tensors, and of Python's objects."""
    state: Mapping[str, int] = field(default_factory=dict)
    """`parameters`, `gradients` and `optimizer`: exact bytes, without the allocator's rounding."""
    peaks: Mapping[str, int] = field(default_factory=dict)
    transfers: tuple[TransferRow, ...] = ()
    launches: Mapping[str, int] = field(default_factory=dict)
    waits: tuple[WaitRow, ...] = ()
    micro_batches: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    """Processor time."""

    def waits_in(self, *phases: str) -> int:
        """Returns the number of waits in these phases; in all without arguments."""
        return sum(row.count for row in self.waits if not phases or row.phase in phases)

    def as_json(self) -> dict[str, Any]:
        """Returns plain data that `report_from` reads."""
        return asdict(self)


def report_from(value: Mapping[str, Any]) -> Report:
    """Returns the Report of plain data."""
    waits = tuple(WaitRow(**row) for row in value["waits"])
    transfers = tuple(TransferRow(**row) for row in value["transfers"])
    return Report(**{**value, "waits": waits, "transfers": transfers})
