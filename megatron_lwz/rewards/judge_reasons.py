"""A judge's own words about a text, as they are kept with its score: bounded, and counted where they are cut."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_lwz.rewards.judge_json import read_object
from megatron_lwz.types import Reason

LONGEST = 1200
"""Maximum number of characters of one reason. The judge is asked for two or three sentences."""
MOST = 40
"""Maximum number of reasons of one score. A score of pairs has two per pair, a checklist one per requirement."""


def reason_in(reply: str, keys: Sequence[str]) -> str:
    """Returns the reason of a reply's verdict, the object that has all `keys`; "" if the judge gave none."""
    found = (read_object(reply, keys) or {}).get("reason")
    return found.strip() if isinstance(found, str) else ""


def bound(reasons: Sequence[Reason]) -> tuple[tuple[Reason, ...], int]:
    """Returns the reasons that are kept, without empty ones, and the number of those cut short or left out."""
    given = [(about, text) for about, text in reasons if text]
    kept = tuple((about, text if len(text) <= LONGEST else text[: LONGEST - 1] + "…") for about, text in given[:MOST])
    return kept, max(0, len(given) - MOST) + sum(len(text) > LONGEST for _, text in given[:MOST])
