"""Which groups engines begin and which the trainer takes: bounded asynchrony as a small state machine; and seeds.

B groups make a batch, step s = 1, 2, … trains one, and k bounds how many steps after its admission a group is trained. A group
admitted at step a has to be trained at step a + k or earlier. With k = 0 this is the synchronous loop.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from megatron_lwz.rollout.drafts import GroupDraft
from megatron_lwz.types import Group, Prompt

SEED_BITS = 48
"""Every JSON reader keeps whole numbers of this size exact."""


class State(Enum):
    """Where a group is between admission and training."""

    ASLEEP = "asleep"
    """An earlier process admitted it, at a step that this one has not reached."""
    RUNNING = "running"
    READY = "ready"


@dataclass
class Admission:
    """Says how many groups may begin and which make the next batch. No clocks, no I/O: every call is a transition.

    The admission formula bounds the groups, (ahead + s) · B − (trained + admitted), but not a straggler: younger groups could
    overtake it for ever. Hence groups are taken oldest first, and a batch is taken only if every group left over can
    still be trained in time: of those due at step s + j or earlier at most j · B may remain, for every j ≥ 1. Taking the
    B oldest always keeps that true, so that nothing waits for ever once everything has finished.
    """

    batch: int
    """B, groups per step."""
    staleness: int
    """k, steps that may lie between a group's admission and its training."""
    last_step: float = math.inf
    """No group is admitted that would be trained after it."""
    carried: float | None = None
    """Batches admitted beyond the one awaited, whose groups may overtake each other (over-sampling): at most k. None: k
    batches, strictly in order, so that what a step trains on does not depend on who finishes first."""
    refills: float = 0
    """Filtered groups per step that are replaced by others: dynamic sampling must end where nothing can be learned."""
    replay: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Step → the groups that an earlier process trained it on: they are taken again, in that order."""
    step: int = 0
    """The step whose batch is awaited."""
    admitted: dict[int, int] = field(default_factory=dict)
    """Group → step of its admission, of all that wait to be trained; ids grow in order of admission."""
    states: dict[int, State] = field(default_factory=dict)
    refilled: int = 0
    """Filtered groups that were replaced since the last step was trained."""
    done: int = 0
    """Steps that are trained: `step` itself between its training and the next step's beginning."""

    @property
    def ahead(self) -> float:
        """Batches admitted beyond the one that is awaited."""
        return self.staleness if self.carried is None else min(self.carried, self.staleness)

    def slots(self) -> int:
        """How many new groups may be admitted now."""
        trained = self.done * self.batch
        allowed = min(math.floor((self.ahead + self.step) * self.batch), self.last_step * self.batch)
        return max(0, int(allowed) - trained - len(self.admitted))

    def restore(self, group: int, admitted: int) -> None:
        """A group that an earlier process admitted sleeps until `advance` reaches its step."""
        self.admitted[group], self.states[group] = admitted, State.ASLEEP

    def advance(self, step: int) -> list[int]:
        """Step `step` begins to await its batch, with the weights that all earlier steps gave; gives sleepers to go on with.

        If too few are awake for a batch (a setting changed since the kill), the oldest sleepers wake before their time.
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
        """A new group begins."""
        self.admitted[group], self.states[group] = self.step, State.RUNNING

    def finish(self, group: int) -> None:
        """All its rollouts are written and scored."""
        self.states[group] = State.READY

    def give_back(self, group: int) -> None:
        """A group that failed: its slot is free again."""
        del self.admitted[group], self.states[group]

    def filter(self, group: int) -> bool:
        """Nothing can be learned from this finished group: its slot is free again.

        False: it stays and is trained, because `refills` are used up, or because an earlier process trained it.
        """
        if self.refilled >= self.refills or any(group in known for known in self.replay.values()):
            return False
        self.refilled += 1
        self.give_back(group)
        return True

    def pending(self) -> list[int]:
        """Groups that wait to be trained, oldest first."""
        return sorted(self.admitted)

    def take(self) -> list[int] | None:
        """The groups of this step's batch, oldest first; None: wait. They stay until `trained`."""
        first = self._first()
        if self._ready(first):
            return first if len(first) == self.batch else None
        if self.carried is None or first == self._repeated():
            return None
        chosen = [group for group in self.pending() if self.states[group] is State.READY][: self.batch]
        return chosen if len(chosen) == self.batch and self._in_time(chosen) else None

    def certain(self) -> list[int]:
        """Groups that will surely be in the batch that `take` gives: they may be trained on before the others are ready.

        Those are the ready ones of the B oldest. A ready group stays until it is trained; older ones only leave and new ones
        are younger, so that it stays among the B oldest; and both batches that `take` may give, the B oldest and the
        first B that are ready, hold every ready one of the B oldest.
        """
        return [group for group in self._first() if self.states[group] is State.READY]

    def trained(self, groups: Iterable[int]) -> None:
        """This step's batch was trained on."""
        self.refilled, self.done = 0, self.step
        for group in groups:
            self.give_back(group)

    def _first(self) -> list[int]:
        """What this step trains on unless younger ones overtake: what it took before a kill, else the B oldest."""
        return self._repeated() or self.pending()[: self.batch]

    def _repeated(self) -> list[int]:
        """The groups that an earlier process trained this step on, if all of them are there again."""
        known = self.replay.get(self.step, ())
        return list(known) if len(known) == self.batch and self.admitted.keys() >= set(known) else []

    def _ready(self, groups: Iterable[int]) -> bool:
        return all(self.states[group] is State.READY for group in groups)

    def _in_time(self, chosen: Sequence[int]) -> bool:
        """Whether what is left over can be trained in time, a batch a step."""
        left = self.admitted.keys() - set(chosen)
        due = sorted(self.admitted[group] + self.staleness - self.step for group in left)
        return all(count <= steps * self.batch for count, steps in enumerate(due, 1))


@dataclass(frozen=True)
class Intake:
    """What a run writes to: group n, counted from 0 in order of admission, writes to `prompt_of(n)`."""

    prompt_of: Callable[[int], Prompt]
    group_size: int
    seed: int
    """Each rollout's seed depends on (this, group id, index) alone."""
    admission: Admission
    barren: Callable[[Group], bool] = lambda group: False
    """Whether nothing can be learned from a finished group: it gives its slot to another, as far as `admission` allows."""


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
