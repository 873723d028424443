"""The state of a curriculum: which prompt the next group answers, and which stage a step is in.

    begin(s)    takes in what the steps before s were trained on, and decides the stage of step s
    draw(n)     the prompt of group n, which is admitted at that step
    outcome(g)  what a trained or replaced group says about its prompt

A group admitted at step s sees the outcomes of the steps before s and no others, however far the engines are ahead. All
state comes from rows of the journal (draws, outcomes, stages). So what is drawn depends on the seed and on what the run
has seen, and a killed run goes on as if nothing had happened.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from megatron_lwz.config.curriculum import KEY, SUCCESS, CurriculumSection
from megatron_lwz.data.curriculum import Pool
from megatron_lwz.data.prompts import PromptOrder
from megatron_lwz.errors import ConfigError
from megatron_lwz.types import ComponentScore, Group, Prompt, Rollout

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draw:
    """How a group came to its prompt."""

    group: int
    prompt: str
    """The prompt's id."""
    admitted: int
    """Step of the group's admission."""
    stage: str
    epoch: int
    """Epoch of the stage's pool, from 0."""
    most_tokens: int
    """Maximum tokens of the group's rollouts."""


@dataclass(frozen=True)
class Outcome:
    """What a group says about its prompt and its stage."""

    group: int
    step: int
    """The step that trained on the group, or in which it was replaced (grpo.zero_variance: refill)."""
    success: float | None
    """Share of the rollouts that succeeded, among those with a score. None: none has a score."""
    value: float | None
    """The metric of the stage's gate: mean over the rollouts. None: none has a score, or the stage has no gate."""


@dataclass(frozen=True)
class Begun:
    """The stage of a step, and the gate's value when the step began (None: no value yet, or no gate)."""

    step: int
    stage: str
    value: float | None


@dataclass(frozen=True)
class History:
    """What the journal of a run knows: all draws, the outcomes that count, the stages of the steps that are kept."""

    draws: Sequence[Draw] = ()
    outcomes: Sequence[Outcome] = ()
    stages: Sequence[Begun] = ()


@dataclass
class _Visit:
    """How far the draws of a stage are."""

    epoch: int = 0
    drawn: set[str] = field(default_factory=set)
    """Prompts that were drawn in this epoch."""


class Curriculum:
    """Draws prompts stage by stage. Not safe from several threads: the controller holds its lock.

    `pools` are those of the section's stages. The order of a pool depends on `seed`, the stage's name and the epoch.
    """

    def __init__(self, section: CurriculumSection, pools: Sequence[Pool], *, seed: int, shuffle: bool) -> None:
        self._section = section
        self._pools = {pool.stage.name: pool for pool in pools}
        self._names = list(self._pools)
        self._orders = {
            name: PromptOrder(len(pool.prompts), f"{seed}/{name}", shuffle) for name, pool in self._pools.items()
        }
        self._prompts = {prompt.id: prompt for pool in pools for prompt in pool.prompts}
        self._draws: dict[int, Draw] = {}
        self._visits: dict[str, _Visit] = {}
        self._rests: dict[tuple[str, str], float] = {}
        """(stage, prompt) → the last epoch that the prompt rests in."""
        self._ahead: dict[int, Outcome] = {}
        """Outcomes by group that no step has taken in yet."""
        self._seen: list[Outcome] = []
        """Outcomes of the present stage that were taken in, in order."""
        self._stage, self._since, self._step = self._names[0], 1, 0
        self._silent = False

    def restore(self, history: History, step: int) -> None:
        """Takes up the state that the journal's rows describe, of a run that continues from `step`.

        Raises ConfigError if the run's stage is not among the stages any more.
        """
        for draw in history.draws:
            self._note(draw)
        if history.stages:
            self._stage = history.stages[-1].stage
            others = [begun.step for begun in history.stages if begun.stage != self._stage]
            self._since = min(b.step for b in history.stages if b.step > max(others, default=0))
            if self._stage not in self._pools:
                advice = f"the run is in stage '{self._stage}', which is not among the stages: give it back its name"
                raise ConfigError(f"{KEY}.stages", self._names, advice)
        elif step > 0:
            self._since = step + 1
            log.warning("curriculum: the journal knows no stage of step %d: it begins with '%s'", step, self._stage)
        self._ahead = {outcome.group: outcome for outcome in history.outcomes}
        self._take_in(step)

    def begin(self, step: int) -> Begun:
        """Begins a step: takes in the outcomes of the steps before it, and may begin the next stage."""
        self._take_in(step - 1)
        self._step = step
        value, lasted = self._value(step - 1), step - self._since
        gate = self._pools[self._stage].stage.gate
        if gate is not None:
            reached = gate.at_least is not None and value is not None and value >= gate.at_least
            if (reached and lasted >= gate.min_steps) or (gate.max_steps is not None and lasted >= gate.max_steps):
                self._begin_next(step, value)
        return Begun(step, self._stage, value)

    def draw(self, group: int) -> tuple[Prompt, Draw]:
        """Returns the prompt of a new group of the present step.

        It is the first one in the epoch's order that was not drawn in this epoch and does not rest. The next epoch
        begins when none is left. A pool whose prompts all rest is drawn from as if none did.
        """
        pool, visit = self._pools[self._stage], self._visits.get(self._stage, _Visit())
        epoch = visit.epoch
        prompt = self._next(epoch, visit.drawn)
        if prompt is None:
            epoch += 1
            prompt = self._next(epoch, set()) or pool.prompts[self._orders[self._stage][epoch * len(pool.prompts)]]
        draw = Draw(group, prompt.id, self._step, self._stage, epoch, pool.most_tokens)
        self._note(draw)
        return prompt, draw

    def stored(self, identity: str) -> Prompt | None:
        """Returns the prompt of this id as the file has it now; None if no stage has it."""
        return self._prompts.get(identity)

    def limit(self, group: int) -> int | None:
        """Returns the maximum tokens of a group's rollouts; None for a group that was not drawn here."""
        draw = self._draws.get(group)
        return draw.most_tokens if draw is not None else None

    def outcome(self, group: Group, step: int | None = None) -> Outcome | None:
        """Returns and remembers what a group says. `step`: the step that trained on it; None: replaced, in this one.

        None for a group that was not drawn here.
        """
        found = self._outcome(group, self._step if step is None else step)
        if found is not None:
            self._ahead[group.id] = found
        return found

    def metrics(self, groups: Iterable[Group]) -> dict[str, float]:
        """Returns the metrics `curriculum/…` of the present step, which trains on `groups`."""
        pool, epoch = self._pools[self._stage], self._epoch()
        resting = sum(self._rests.get((self._stage, prompt.id), -1.0) >= epoch for prompt in pool.prompts)
        found = [outcome for group in groups if (outcome := self._outcome(group, self._step)) is not None]
        successes = [outcome.success for outcome in found if outcome.success is not None]
        own = [outcome for outcome in found if self._draws[outcome.group].stage == self._stage]
        value = self._value(self._step, own)
        metrics: dict[str, float] = {
            "stage": self._names.index(self._stage) + 1,
            "pool_size": len(pool.prompts),
            "skipped": resting,
            "epoch": epoch,
            "max_new_tokens": pool.most_tokens,
        }
        metrics |= {"success": sum(successes) / len(successes)} if successes else {}
        metrics |= {"gate": value} if value is not None else {}
        return {f"curriculum/{name}": float(number) for name, number in metrics.items()}

    def _begin_next(self, step: int, value: float | None) -> None:
        before, number = self._stage, self._names.index(self._stage) + 1
        self._stage, self._since, self._seen = self._names[number], step, []
        gate, pool = self._pools[before].stage.gate, self._pools[self._stage]
        assert gate is not None
        bound = f" of {gate.at_least:g}" if gate.at_least is not None else ""
        reached = f"{gate.metric} {value:.3g}{bound}" if value is not None else f"no value of {gate.metric}"
        log.info(
            "curriculum: stage %d of %d, '%s', from step %d on: %d prompts, at most %d tokens per response; '%s' ends with %s",
            number + 1, len(self._names), self._stage, step, len(pool.prompts), pool.most_tokens, before, reached,
        )  # fmt: skip

    def _take_in(self, step: int) -> None:
        """Takes in all outcomes of this step and earlier ones, in an order that does not depend on when they came."""
        ready = sorted((o for o in self._ahead.values() if o.step <= step), key=lambda o: (o.step, o.group))
        for outcome in ready:
            del self._ahead[outcome.group]
            draw = self._draws[outcome.group]
            if draw.stage == self._stage:
                self._seen.append(outcome)
            if outcome.success is not None:
                self._rest(draw, outcome.success)

    def _rest(self, draw: Draw, success: float) -> None:
        section, key = self._section, (draw.stage, draw.prompt)
        easy = section.easy is not None and success >= section.easy
        if easy or (section.hard is not None and success <= section.hard):
            self._rests[key] = draw.epoch + (section.rest_epochs or math.inf)
        else:
            self._rests.pop(key, None)

    def _next(self, epoch: int, drawn: set[str]) -> Prompt | None:
        """Returns the first prompt of an epoch of the present stage that was not drawn in it and does not rest."""
        pool, order = self._pools[self._stage].prompts, self._orders[self._stage]
        for place in range(len(pool)):
            prompt = pool[order[epoch * len(pool) + place]]
            if prompt.id not in drawn and self._rests.get((self._stage, prompt.id), -1.0) < epoch:
                return prompt
        return None

    def _note(self, draw: Draw) -> None:
        self._draws[draw.group] = draw
        visit = self._visits.setdefault(draw.stage, _Visit())
        if draw.epoch > visit.epoch:
            visit.epoch, visit.drawn = draw.epoch, set()
        if draw.epoch == visit.epoch:
            visit.drawn.add(draw.prompt)

    def _epoch(self) -> int:
        """Returns the present stage's epoch: that of the last draw up to this step.

        A resumed run knows later draws already.
        """
        epochs = (d.epoch for d in self._draws.values() if d.stage == self._stage and d.admitted <= self._step)
        return max(epochs, default=0)

    def _value(self, step: int, more: Iterable[Outcome] = ()) -> float | None:
        """Returns the gate's value after `step`: the mean over the stage's groups in the window."""
        gate = self._pools[self._stage].stage.gate
        if gate is None:
            return None
        found = [*self._seen, *more]
        values = [o.value for o in found if o.value is not None and o.step > step - gate.window]
        if found and not values and not self._silent:
            self._silent = True
            log.warning("curriculum: no group of stage '%s' has a score %s, by which it ends", self._stage, gate.metric)
        return sum(values) / len(values) if values else None

    def _outcome(self, group: Group, step: int) -> Outcome | None:
        draw = self._draws.get(group.id)
        if draw is None:
            return None
        section, pool = self._section, self._pools.get(draw.stage)
        scored = list(zip(group.rollouts, group.scores, strict=True))
        known = [(r, v) for r, scores in scored if (v := _value_of(scores, section.success)) is not None]
        success = [_succeeds(rollout, value, section.success_at_least) for rollout, value in known]
        share = sum(success) / len(success) if success else None
        if pool is None or pool.stage.gate is None:
            return Outcome(group.id, step, share, None)
        if (metric := pool.stage.gate.metric) == SUCCESS:
            return Outcome(group.id, step, share, share)
        values = [value for _, scores in scored if (value := _value_of(scores, metric)) is not None]
        return Outcome(group.id, step, share, sum(values) / len(values) if values else None)


def _succeeds(rollout: Rollout, value: float, bound: float) -> bool:
    return value >= bound and not rollout.truncated


def _value_of(scores: Mapping[str, ComponentScore], metric: str) -> float | None:
    """Returns a component's valid score, or the detail of it that the metric names; None if there is none."""
    name, _, detail = (metric, "", "") if metric in scores else metric.partition(".")
    score = scores.get(name)
    if score is None or not score.valid:
        return None
    return score.details.get(detail) if detail else score.value
