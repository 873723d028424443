"""The stream guard, which watches rollouts while they are generated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_lwz.config.base import CommaList, Section

Rule = Literal["format", "loop", "length"]


class GuardSection(Section):
    """Rules that the stream guard checks on unfinished rollouts, and what it does when one holds (docs/guard.md)."""

    mode: Literal["off", "observe", "on"] = Field(
        "off",
        description="off: no checks; observe: record where a rule holds and keep generating; on: stop the rollout there, if that is allowed",
    )
    rules: Annotated[tuple[Rule, ...], CommaList] = Field(
        ("format", "loop", "length"),
        min_length=1,
        description="format: no continuation can be well formed; loop: the text repeats itself; length: the length reward is 0 whatever follows; open",
    )
    scores: dict[str, float | None] = Field(
        {},
        description="component → score of a stopped rollout if the component's own score is not determined yet; null masks it. This is reward shaping; the guard does not stop a rollout while an undetermined component is missing here",
    )
    interval: int = Field(
        64, gt=0, description="tokens between two checks; a rollout can only be stopped at a check; open"
    )
    loop_characters: int = Field(2000, gt=0, description="minimum length of a loop, in characters; open")
    loop_repeats: int = Field(5, ge=3, description="minimum number of repetitions of a loop's unit; open")
    loop_unit: int = Field(2000, gt=0, description="maximum length of a loop's unit, in characters; open")
