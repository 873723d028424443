"""Rank 0's rollout service: engines, journal, rewards and controller, in the trainer's process or a separate one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from typing_extensions import override

from megatron_lwz.config import Config
from megatron_lwz.config.sections import RewardSection
from megatron_lwz.data.curriculum import Pool, describe, make_pools
from megatron_lwz.data.prompts import PromptOrder, read_prompts
from megatron_lwz.data.templates import render
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.distributed import termination
from megatron_lwz.errors import ConfigError
from megatron_lwz.evaluation.in_loop import InLoopEvaluation, Metrics
from megatron_lwz.orchestrator.engines import embedded_engine, running_engines
from megatron_lwz.orchestrator.evaluation import in_loop_evaluation
from megatron_lwz.orchestrator.experience import (
    Experience,
    advantage_records,
    batch_of,
    experience_metrics,
    is_barren,
    rollout_ids,
    weigh,
)
from megatron_lwz.orchestrator.protocol import Host, Waiting
from megatron_lwz.orchestrator.reward_server import open_reward_servers
from megatron_lwz.profiling.spans import Span
from megatron_lwz.rewards.composite import build_rewards, reward_metrics, with_fixed_criteria
from megatron_lwz.rewards.continuation import check_continuations
from megatron_lwz.rewards.guard import response_guards
from megatron_lwz.rollout.admission import Admission, Intake
from megatron_lwz.rollout.controller import RolloutController
from megatron_lwz.rollout.curriculum import Curriculum
from megatron_lwz.rollout.held_out import HeldOut
from megatron_lwz.rollout.journal import AdvantageRecord, Journal, take_up
from megatron_lwz.rollout.journal_check import check_journal
from megatron_lwz.rollout.length_book import LengthBook, exclusions
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.types import Group, Prompt, RewardFn, WeightVersion

logger = logging.getLogger(__name__)


@contextmanager
def local_host(config: Config, run: RunPaths, step: int, waiting: Waiting) -> Iterator[Host]:
    """Yields a host in this process, with its reward model server. Both are closed at the end of the block.

    The run continues from `step`.
    """
    with ExitStack() as stack:
        yield RolloutHost(config, run, step, waiting, stack)


class RolloutHost(Host):
    """Engines, journal, rewards and controller of a run.

    A new host has read and checked all its inputs and has changed no file of the run but a log. `waiting` is called with
    the progress of awaited rollouts. `stack` closes the servers and connections that the host opens.
    """

    engines: EnginePool

    def __init__(self, config: Config, run: RunPaths, step: int, waiting: Waiting, stack: ExitStack) -> None:
        self._run, self._step, self._waiting = run, step, waiting
        self._stack = stack
        self._config = config
        self._evaluation: InLoopEvaluation | None = None
        self._tokenizer = Tokenizer(config.tokenizer_dir())
        self._prompts = self._read(config.data.prompts)
        check_continuations(config.reward.continuation, str(config.data.prompts), self._prompts)
        self._held_out = self._read(config.data.held_out_prompts) if config.data.held_out_prompts else []
        self._order = PromptOrder(len(self._prompts), config.run.seed, config.data.shuffle)
        if not config.rollout.new_journal:
            check_journal(run.journal, step)
        self._running = running_engines(config) if config.rollout.elsewhere else None
        self._config = stack.enter_context(open_reward_servers(config, run))
        self._rewards = self._new_rewards(self._config.reward)
        self._names = [reward.name for reward in self._rewards]
        self._pools = self._read_pools()
        self._guard = response_guards(config) if config.rollout.guard.mode != "off" else None
        self._batch: list[Group] = []
        self._lengths = LengthBook(config.rollout.lengths, config.rollout.max_staleness)

    @override
    def connect(self, version: WeightVersion, folder: Path) -> None:
        if (engines := self._running) is None:
            engines = self._stack.enter_context(embedded_engine(self._config, self._run, folder))
        self.engines = engines
        self._stack.enter_context(self._controlled(engines, version))

    @contextmanager
    def _controlled(self, pool: EnginePool, version: WeightVersion) -> Iterator[None]:
        """Opens the journal and runs the controller within the block."""
        journal = take_up(
            self._run.journal,
            self._step,
            exclusive=self._config.rollout.network_journal,
            first=self._step * self._config.training.prompts_per_step,
            new=self._config.rollout.new_journal,
            checked=not self._config.rollout.new_journal,
        )
        self._journal = journal
        self._controller = RolloutController(
            pool,
            journal,
            self._rewards,
            intake=self._intake(),
            tokenizer=self._tokenizer,
            render=self._render,
            section=self._config.rollout,
            guard=self._guard,
        )
        recovery = self._controller.recover(self._step)
        if recovery.complete or recovery.unfinished:
            logger.warning("journal: %s", recovery)
        self._controller.set_version(version)
        self._controller.start()
        try:
            self._evaluation = self._open_evaluation(pool, journal)
            with termination.kept(journal.commit):
                yield
        finally:
            if self._evaluation is not None:
                self._evaluation.close()
            self._controller.close()

    @override
    def set_version(self, version: WeightVersion) -> None:
        self._controller.set_version(version)

    @override
    def experience(self, step: int) -> Iterator[Experience]:
        if self._evaluation is not None:
            self._evaluation.settle(self._waiting)  # of an earlier process, before the weights change
        size, config = self._config.training.prompts_per_step, self._config
        least, mask = config.training.accumulate_groups or size, config.grpo.truncated == "mask"
        weighed: list[tuple[Group, Mapping[int, str], Sequence[AdvantageRecord]]] = []
        for part in self._controller.stream(step, least=least, progress=self._waiting):
            self._batch += part
            found, weights, _ = weigh(part, config, self._names, step)
            batch = batch_of(part, found, weights)
            reasons = (exclusions(g, w, mask_truncated=mask) for g, w in zip(part, weights.tolist(), strict=True))
            weighed += zip(part, reasons, advantage_records(found), strict=True)
            if len(self._batch) < size:
                yield Experience(batch, {}, last=False, rollouts=rollout_ids(part))
        for group, excluded, advantages in weighed:  # durable together with the record that the groups were trained on
            self._journal.exclude(group.id, excluded)
            self._journal.note_advantages(group.id, advantages)
        self._batch.sort(key=lambda group: group.id)
        metrics = experience_metrics(self._batch, config, names=self._names, step=step)
        metrics |= self._controller.metrics() | reward_metrics(self._rewards)
        metrics |= self._controller.curriculum_metrics(self._batch)
        yield Experience(batch, metrics, rollouts=rollout_ids(part))

    @override
    def record(self, on: bool) -> list[Span]:
        return self._controller.spans.record(on)

    @override
    def halt(self) -> None:
        self._controller.halt()

    @override
    def trained(self, step: int) -> None:
        self._controller.mark_consumed(self._batch, step)
        self._batch = []

    @override
    def settle(self) -> None:
        self._controller.settle()

    @override
    def checkpointed(self, step: int) -> None:
        self._controller.checkpoint(step)

    @override
    def lengths(self, step: int) -> Metrics:
        return self._lengths.measure(step, self._journal.lengths)

    @override
    def take_up_evaluations(self, version: WeightVersion, folder: Path) -> None:
        if self._evaluation is not None:
            self._evaluation.take_up(version, folder)

    @override
    def evaluate(self, version: WeightVersion, folder: Path) -> None:
        if self._evaluation is not None:
            self._evaluation.begin(version, folder, waiting=self._waiting)

    @override
    def evaluated(self) -> Iterator[tuple[int, Metrics]]:
        if self._evaluation is not None:
            yield from self._evaluation.finished()

    @override
    def finish_evaluations(self) -> None:
        if self._evaluation is not None:
            self._evaluation.wait(waiting=self._waiting)

    def _open_evaluation(self, pool: EnginePool, journal: Journal) -> InLoopEvaluation | None:
        if not self._held_out:
            return None
        writer = HeldOut(
            journal,
            # separate components, because a component belongs to one event loop
            self._new_rewards(with_fixed_criteria(self._config.reward)),
            tokenizer=self._tokenizer,
            render=self._render,
            section=self._config.rollout,
            seed=self._config.run.seed,
            spans=self._controller.spans,
        )
        return in_loop_evaluation(self._config, self._run, writer, self._held_out, pool)

    def _intake(self) -> Intake:
        """Creates the prompt intake.

        Only the order decides which prompt is the n-th, so a resumed run requests the same prompts on any layout.
        """
        config, batch = self._config, self._config.training.prompts_per_step
        refills = config.grpo.most_refills * batch if config.grpo.zero_variance == "refill" else 0
        return Intake(
            prompt_of=lambda place: self._prompts[self._order[place]],
            group_size=config.grpo.group_size,
            seed=config.run.seed,
            admission=Admission(
                batch=batch,
                staleness=config.rollout.max_staleness,
                carried=config.rollout.over_sampling,
                last_step=config.training.steps,
                refills=refills,
            ),
            barren=partial(is_barren, config=config, names=self._names),
            curriculum=self._new_curriculum(),
        )

    def _new_curriculum(self) -> Curriculum | None:
        """Creates the run's curriculum, None if it has none. The log says its stages."""
        config, section = self._config, self._config.data.curriculum
        if self._pools is None:
            return None
        for line in describe(self._pools, self._prompts, config.training.steps, config.training.prompts_per_step):
            logger.info("%s", line)
        return Curriculum(section, self._pools, seed=config.run.seed, shuffle=config.data.shuffle)

    def _new_rewards(self, section: RewardSection) -> list[RewardFn]:
        judge = self._config.judge
        if judge.cache is None:
            judge = judge.model_copy(update={"cache": str(self._run.judge_cache)})
        return build_rewards(section, self._tokenizer, judge, weightless=self._config.grpo.taught)

    def _read_pools(self) -> list[Pool] | None:
        section = self._config.data.curriculum
        if not section.used:
            return None
        return make_pools(section, self._prompts, self._config.rollout.max_new_tokens)

    def _render(self, prompt: Prompt) -> str:
        return render(prompt, self._config.data.template)

    def _read(self, path: str | None) -> list[Prompt]:
        prompts = read_prompts(str(path), maximum_length=self._config.reward.length.maximum)
        if (template := self._config.data.prompt_template) is not None:
            prompts = [replace(prompt, template=template) for prompt in prompts]
        limit, before = self._config.data.max_prompt_tokens, self._tokenizer.control_texts
        kept = [p for p in prompts if len(self._tokenizer.encode(self._render(p))) <= limit]
        if len(kept) < len(prompts):
            logger.warning("%s: %d prompts over %d tokens are left out", path, len(prompts) - len(kept), limit)
        if count := self._tokenizer.control_texts - before:
            logger.warning("%s: %d prompts spell out control tokens, which are read as text", path, count)
        if not kept:
            raise ConfigError("data.max_prompt_tokens", limit, f"leaves no prompt of {path}")
        return kept
