"""Decides which groups begin and which ones the trainer takes: bounded asynchrony as a state machine. Also seeds.

A batch consists of B groups. Step s = 1, 2, … trains on one batch. k bounds the number of steps between a group's
admission and its training: a group admitted at step a must be trained at step a + k or earlier. k = 0 is the
synchronous loop.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum

from megatron_lwz.rollout.curriculum import Curriculum
from megatron_lwz.rollout.drafts import GroupDraft
from megatron_lwz.rollout.length_book import PROMPTS_CHANGED, SIZE_CHANGED
from megatron_lwz.types import Group, Prompt

SEED_BITS = 48
"""Size of a seed. Every JSON reader keeps integers of this size exact."""


class State(Enum):
    """State of a group between admission and training."""

    ASLEEP = "asleep"
    """An earlier process admitted the group at a step that this process has not reached yet."""
    RUNNING = "running"
    READY = "ready"


@dataclass
class Admission:
    """Decides how many groups may begin and which make the next batch. No clocks, no I/O: every call is a transition.

    The admission formula (ahead + s) · B − (trained + admitted) bounds the number of groups. It does not bound a
    straggler: younger groups could overtake it for ever. Hence groups are taken oldest first. A batch is taken only if
    every remaining group can still be trained in time: for every j ≥ 1, at most j · B of the remaining groups may be
    due at step s + j or earlier. Taking the B oldest groups always keeps this true. So no group waits for ever once all
    of them have finished.
    """

    batch: int
    """B, the number of groups per step."""
    staleness: int
    """k, the maximum number of steps between a group's admission and its training."""
    last_step: float = math.inf
    """The last training step. A group that would be trained after it is not admitted."""
    carried: float | None = None
    """Batches admitted beyond the awaited one, whose groups may overtake each other (over-sampling). At most k
    count. None: k batches, strictly in order. What a step trains on then does not depend on which group finishes
    first.
    """
    refills: float = 0
    """Maximum number of filtered groups per step that others replace. Dynamic sampling must end where nothing can be
    learned.
    """
    replay: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Step → the groups that an earlier process trained it on. The step takes the same groups again, in that order."""
    step: int = 0
    """The step whose batch is awaited."""
    admitted: dict[int, int] = field(default_factory=dict)
    """Group → step of its admission, for all groups that wait to be trained. Ids grow in order of admission."""
    states: dict[int, State] = field(default_factory=dict)
    refilled: int = 0
    """Number of filtered groups that were replaced since the last step was trained."""
    done: int = 0
    """Number of trained steps. It equals `step` between the training of that step and the beginning of the next one."""

    @property
    def ahead(self) -> float:
        """Number of batches admitted beyond the awaited one."""
        return self.staleness if self.carried is None else min(self.carried, self.staleness)

    def slots(self) -> int:
        """Returns how many new groups may be admitted now."""
        trained = self.done * self.batch
        allowed = min(math.floor((self.ahead + self.step) * self.batch), self.last_step * self.batch)
        return max(0, int(allowed) - trained - len(self.admitted))

    def restore(self, group: int, admitted: int) -> None:
        """Adds a group that an earlier process admitted.

        It sleeps until `advance` reaches the step of its admission.
        """
        self.admitted[group], self.states[group] = admitted, State.ASLEEP

    def advance(self, step: int) -> list[int]:
        """Begins step `step`, whose weights contain the updates of all earlier steps.

        Returns the sleeping groups to resume. If too few groups are awake for a batch (because a setting changed since
        the kill), it wakes the oldest sleeping groups early.
        """
        self.step, self.done = step, step - 1
        awake = sum(state is not State.ASLEEP for state in self.states.values())
        woken = []
        for group in self.pending():
            if self.states[group] is State.ASLEEP and (self.admitted[group] <= step or awake < self.batch):
                self.states[group] = State.RUNNING
                awake += 1
                woken.append(group)
        return woken

    def admit(self, group: int) -> None:
        """Adds a new group, which begins now."""
        self.admitted[group], self.states[group] = self.step, State.RUNNING

    def finish(self, group: int) -> None:
        """Marks a group as ready: all its rollouts are written and scored."""
        self.states[group] = State.READY

    def give_back(self, group: int) -> None:
        """Removes a group, for example one that failed, and frees its slot."""
        del self.admitted[group], self.states[group]

    def filter(self, group: int) -> bool:
        """Removes a finished group from which nothing can be learned, and frees its slot. Returns whether it did so.

        The group stays and is trained if `refills` are used up, or if an earlier process trained it.
        """
        if self.refilled >= self.refills or any(group in known for known in self.replay.values()):
            return False
        self.refilled += 1
        self.give_back(group)
        return True

    def pending(self) -> list[int]:
        """Returns the groups that wait to be trained, oldest first."""
        return sorted(self.admitted)

    def take(self) -> list[int] | None:
        """Returns the groups of this step's batch, oldest first, or None if it is not complete.

        They stay until `trained`.
        """
        first = self._first()
        if self._ready(first):
            return first if len(first) == self.batch else None
        if self.carried is None or first == self._repeated():
            return None
        chosen = [group for group in self.pending() if self.states[group] is State.READY][: self.batch]
        return chosen if len(chosen) == self.batch and self._in_time(chosen) else None

    def certain(self) -> list[int]:
        """Returns groups that will surely be in the batch that `take` returns.

        Training on them may begin before it is complete. These are the ready groups among the B oldest. A ready group
        stays until it is trained. Older groups only leave and new ones are younger, so it stays among the B oldest.
        `take` returns either the B oldest groups or the first B that are ready, and both contain every ready group of
        the B oldest.
        """
        return [group for group in self._first() if self.states[group] is State.READY]

    def trained(self, groups: Iterable[int]) -> None:
        """Records that this step was trained on `groups`, and removes them."""
        self.refilled, self.done = 0, self.step
        for group in groups:
            self.give_back(group)

    def _first(self) -> list[int]:
        """Returns this step's groups unless younger ones overtake: those it took before a kill, else the B oldest."""
        return self._repeated() or self.pending()[: self.batch]

    def _repeated(self) -> list[int]:
        """Returns the groups that an earlier process trained this step on, [] unless all are present again."""
        known = self.replay.get(self.step, ())
        return list(known) if len(known) == self.batch and self.admitted.keys() >= set(known) else []

    def _ready(self, groups: Iterable[int]) -> bool:
        return all(self.states[group] is State.READY for group in groups)

    def _in_time(self, chosen: Sequence[int]) -> bool:
        """Returns whether the remaining groups can be trained in time, one batch per step."""
        left = self.admitted.keys() - set(chosen)
        due = sorted(self.admitted[group] + self.staleness - self.step for group in left)
        return all(count <= steps * self.batch for count, steps in enumerate(due, 1))


@dataclass(frozen=True)
class Intake:
    """The source of a run's groups.

    Group n, counted from 0 in order of admission, answers the prompt `prompt_of(n)`.
    """

    prompt_of: Callable[[int], Prompt]
    group_size: int
    seed: int
    """Seed of the run. Each rollout's seed depends only on it, the group id and the rollout's index."""
    admission: Admission
    barren: Callable[[Group], bool] = lambda group: False
    """Whether nothing can be learned from a finished group. Such a group gives its slot to another one, as far as
    `admission` allows.
    """
    curriculum: Curriculum | None = None
    """Draws the prompts in the place of `prompt_of`, if the run has one."""

    def stored(self, group: GroupDraft) -> Prompt | None:
        """Returns the prompt that a group of the journal must have, as the file has it now."""
        return self.prompt_of(group.id) if self.curriculum is None else self.curriculum.stored(group.prompt.id)


def derive_seed(*parts: object) -> int:
    """Returns a number in [0, 2^48) that depends on every part. It is the same on every machine and Python version."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest, "big") >> (256 - SEED_BITS)


def misfit(group: GroupDraft, prompt: Prompt | None, group_size: int) -> tuple[str, str] | None:
    """Returns why a journal's group is not the one for `prompt`: the reason to record, and the same in words.

    None if it is. `prompt` is None if no stage of the curriculum has the group's prompt.
    """
    if len(group.drafts) != group_size:
        return SIZE_CHANGED, f"it has {len(group.drafts)} rollouts, and a group now has {group_size}"
    if prompt is None:
        return PROMPTS_CHANGED, f"its prompt {group.prompt.id!r} is in no stage of the curriculum now"
    if group.prompt.id != prompt.id:
        return PROMPTS_CHANGED, f"its place in the order of prompts now has {prompt.id!r}, not {group.prompt.id!r}"
    changed = [
        field.name for field in fields(Prompt) if getattr(group.prompt, field.name) != getattr(prompt, field.name)
    ]
    return (PROMPTS_CHANGED, f"prompt {prompt.id!r} has another {', '.join(changed)} now") if changed else None


def match_groups(
    prompts: Sequence[Prompt], known: Sequence[GroupDraft], *, group_size: int
) -> tuple[list[GroupDraft | None], list[GroupDraft]]:
    """Returns the journal's group for each prompt (None: admit a new one), and the groups that match no prompt.

    A recovered step asks for the prompts that it had before the kill. It resumes their groups: none is repeated or
    skipped. Groups match no prompt only if the prompt file, its order or the group size changed in between.
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
