"""Whether training sees texts as long as the policy writes them."""

from __future__ import annotations

from pydantic import Field

from megatron_lwz.config.base import Fraction, Section


class LengthsSection(Section):
    """The warning when the lengths sampled and those trained on part (docs/rollouts.md, "Length honesty")."""

    gap: Fraction = Field(
        0.05,
        description="largest difference of the two distribution functions that is put up with (Kolmogorov–Smirnov); ours",
    )
    false_alarms: float = Field(
        0.001,
        gt=0,
        lt=1,
        description="probability per step of a warning where exclusion has nothing to do with length; ours",
    )
    window: int = Field(8, gt=0, description="most batches that are compared at once, newest first; ours")
