"""Which groups a step gets, and the seed of each of their rollouts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from megatron_lwz.rollout.drafts import GroupDraft
from megatron_lwz.types import Prompt

SEED_BITS = 48
"""Every JSON reader keeps whole numbers of this size exact."""


def derive_seed(*parts: object) -> int:
    """A number in [0, 2^48) that depends on every part, the same on every machine and Python version."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest, "big") >> (256 - SEED_BITS)


def match_groups(
    prompts: Sequence[Prompt], known: Sequence[GroupDraft], *, group_size: int
) -> tuple[list[GroupDraft | None], list[GroupDraft]]:
    """For each prompt the group that the journal already has for it (None: admit a new one), and the groups left over.

    A recovered step asks for the prompts it had before the kill: its groups go on, none is repeated or skipped. Groups
    are left over only if the prompt file, its order or the group size changed in between.
    """
    left = list(known)
    found: list[GroupDraft | None] = []
    for prompt in prompts:
        same = (group for group in left if group.prompt == prompt and len(group.drafts) == group_size)
        group = next(same, None)
        if group is not None:
            left.remove(group)
        found.append(group)
    return found, left
