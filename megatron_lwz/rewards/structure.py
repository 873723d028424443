"""The structure reward, an optional component: headings and lists that are well made, and those that were requested."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from megatron_lwz.config.sections import StructureReward
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.data.text.structure import (
    COUNTED,
    Check,
    Structure,
    check_asked,
    check_headings,
    check_lists,
    check_numbering,
    read_structure,
)
from megatron_lwz.rewards.per_rollout import PerRollout
from megatron_lwz.types import ComponentScore, Prompt, Rollout

STRUCTURE = "structure"
"""Key of a prompt row: `{"headings": {"lower": 3, "upper": 8}, "lists": …, "items": …, "paragraphs": …}`."""

_CHECKS: dict[str, Callable[[Structure], Check]] = {
    "headings": check_headings,
    "numbering": check_numbering,
    "lists": check_lists,
}

log = logging.getLogger(__name__)


class StructureComponent(PerRollout):
    """The mean of the checks that apply to a text, in [0, 1]; 1 for plain prose if the prompt requests no structure.

    A response without an answer gets 0. Details: the value of each check that applies, and `structure_faults`.
    """

    name = "structure"

    def __init__(self, section: StructureReward) -> None:
        self._checks = dict.fromkeys(section.checks)
        self._warned = False

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        """Returns one score per rollout, always valid."""
        asked = self._asked(prompt) if "asked" in self._checks else ()
        return [self._score_one(parse_rollout(prompt, rollout).answer or "", asked) for rollout in rollouts]

    def _score_one(self, text: str, asked: Sequence[tuple[str, int, int]]) -> ComponentScore:
        if not text.strip():
            return ComponentScore(0.0)
        found = read_structure(text)
        checks = {name: _CHECKS[name](found) if name in _CHECKS else check_asked(found, asked) for name in self._checks}
        values = {name: check.value for name, check in checks.items() if check.value is not None}
        faults = float(sum(len(check.faults) for check in checks.values()))
        details = {f"structure_{name}": value for name, value in values.items()} | {"structure_faults": faults}
        return ComponentScore(sum(values.values()) / len(values) if values else 1.0, details=details)

    def _asked(self, prompt: Prompt) -> list[tuple[str, int, int]]:
        wishes = prompt.extra.get(STRUCTURE)
        if wishes is None:
            return []
        try:
            return read_wishes(wishes)
        except ValueError as error:
            if not self._warned:
                log.warning("prompt %s: key 'structure': %s; its wishes are left out", prompt.id, error)
                self._warned = True
            return []


def read_wishes(wishes: Any) -> list[tuple[str, int, int]]:
    """Returns (what is counted, lower, upper) of a row's `structure`. Raises ValueError that states the fault."""
    if not isinstance(wishes, dict):
        raise ValueError(f"must be an object of counts, got {wishes!r:.60}")
    found = []
    for name, bounds in wishes.items():
        if name not in COUNTED:
            raise ValueError(f"knows {', '.join(COUNTED)}, got {name!r:.60}")
        if not isinstance(bounds, dict) or not all(type(bounds.get(key)) is int for key in ("lower", "upper")):
            raise ValueError(f'{name} must be {{"lower": integer, "upper": integer}}, got {bounds!r:.60}')
        if not 0 <= bounds["lower"] <= bounds["upper"]:
            raise ValueError(f"{name} must have 0 ≤ lower ≤ upper, got {bounds!r:.60}")
        found.append((str(name), bounds["lower"], bounds["upper"]))
    return found
