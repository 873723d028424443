"""The check that training uses texts as long as those the policy generates."""

from __future__ import annotations

from pydantic import Field

from megatron_lwz.config.base import Fraction, Section


class LengthsSection(Section):
    """The warning for a difference between sampled and trained lengths (docs/rollouts.md, "Length honesty")."""

    gap: Fraction = Field(
        0.05,
        description="largest allowed difference of the two distribution functions (Kolmogorov–Smirnov); ours",
    )
    false_alarms: float = Field(
        0.001,
        gt=0,
        lt=1,
        description="probability per step of a false warning, when exclusion does not depend on length; ours",
    )
    window: int = Field(8, gt=0, description="maximum number of batches compared at once, newest first; ours")
