"""What watches a rollout while it is written."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_lwz.config.base import Section

Rule = Literal["format", "loop", "length"]


class GuardSection(Section):
    """Rules that hold for a rollout before it has ended, and what follows (docs/guard.md)."""

    mode: Literal["off", "observe", "on"] = Field(
        "off", description="observe: note where a rule holds and write on; on: stop there, if that is allowed"
    )
    rules: tuple[Rule, ...] = Field(
        ("format", "loop", "length"),
        min_length=1,
        description="format: no continuation can be well formed; loop: the text goes round in circles; length: the length reward is 0 whatever follows; open",
    )
    scores: dict[str, float | None] = Field(
        {},
        description="component → the score of a rollout that is stopped while the component's own is not determined yet; null masks it. This is shaping; what it does not name is only observed",
    )
    interval: int = Field(
        64, gt=0, description="tokens between two looks, which also are the only places to stop at; open"
    )
    loop_characters: int = Field(2000, gt=0, description="a loop is at least so many characters long; open")
    loop_repeats: int = Field(5, ge=3, description="and at least so many times its unit; open")
    loop_unit: int = Field(2000, gt=0, description="characters of the longest unit that is looked for; open")
