"""Writes each rollout to its end, even when engines fail meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.data.markup import Markup
from megatron_lwz.http.retry import Failure, RequestFailure, RetryBudget
from megatron_lwz.profiling.spans import ENGINE, Recorder
from megatron_lwz.rollout.admission import derive_seed
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.events import StreamEnd, StreamEvent
from megatron_lwz.rollout.guard import GuardedRollout, GuardMaker
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.types import FinishReason, Prompt, TokenDelta

BACKOFF_SECONDS = {Failure.CONNECTION: 0.25, Failure.TIMEOUT: 0.25, Failure.SERVER: 1.0, Failure.CONTRACT: 0.25}
"""Initial waits before a retry, which double. A busy engine needs longer than it takes to find another engine."""

DISK_POLL_SECONDS = 0.1

log = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """The part of a tokenizer that rollouts need."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a rendered prompt."""
        ...

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Returns the text of token ids."""
        ...


class RolloutWriter:
    """Streams rollouts from the pool's engines into the journal.

    After a failure it resumes from the last token received. `guard` watches them during generation, as `rollout.guard`
    configures. `spans` records every request.
    """

    def __init__(
        self,
        pool: EnginePool,
        journal: Journal,
        tokenizer: Tokenizer,
        section: RolloutSection,
        guard: GuardMaker | None = None,
        spans: Recorder | None = None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._spans = spans or Recorder()
        self._pool = pool
        self._journal = journal
        self._tokenizer = tokenizer
        self._section = section
        self._guard = guard if section.guard.mode != "off" else None
        self._window = max((len(stop.encode()) for stop in section.stop), default=0) + 8
        """Number of tokens that surely hold a whole stop string: each token is at least one byte, plus a margin."""
        ids = {stop: tokenizer.encode(Markup(stop)) for stop in section.stop}
        self._special = {i[0]: stop for stop, i in ids.items() if len(i) == 1 and not tokenizer.decode(i)}
        """Token id → stop string, for stop strings that are a special token and so never appear in the decoded text."""
        self._stops: tuple[str | int, ...] = (*section.stop, *sorted(tokenizer.eos_ids | self._special.keys()))
        """Stop strings and token ids of each request. They include every EOS that any file of the model names,
        because an engine knows only those that it reads itself.
        """

    async def write_group(
        self, group: GroupDraft, seed_of: Callable[[int], int], ended: Callable[[Draft], None]
    ) -> bool:
        """Writes all unfinished rollouts of the group and calls `ended` at each end.

        Returns False if none was unfinished. `seed_of` maps an index to its seed. The first failure cancels the other
        rollouts and is raised.
        """

        async def write(draft: Draft) -> None:
            await self.write(group, draft, seed_of(draft.index))
            ended(draft)

        work = [asyncio.ensure_future(write(draft)) for draft in group.drafts if draft.reason is None]
        try:
            await asyncio.gather(*work)
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        return bool(work)

    async def write(self, group: GroupDraft, draft: Draft, seed: int) -> None:
        """Writes the draft to its end. The end is queued in the journal at return, not yet durable.

        Raises RequestFailure when consecutive failures without a new token use up the budget.
        """
        limit = self._limit(draft)
        guarded = self._guarded(group.prompt, limit)
        stopped = guarded is not None and guarded.take(draft.tokens) is not None
        end = StreamEnd(FinishReason.GUARD) if stopped else self.end_of(draft.tokens, limit)
        if end is not None:  # the process was killed between the last token and the record of the end
            self._finish(draft, end, guarded)
        limits = {Failure(kind): most for kind, most in self._section.retry_limits.items()}
        budget = RetryBudget(self._section.retries, limits, BACKOFF_SECONDS)
        last: EngineClient | None = None
        avoided: EngineClient | None = None
        while draft.reason is None:
            before = len(draft.tokens)
            try:
                async with self._pool.lease(group.id, avoided) as client:
                    self.counters["moved"] += last not in (None, client)
                    last = client
                    await self._stream(client, group, draft, seed, guarded)
                continue
            except RequestFailure as error:
                failure = error
            if len(draft.tokens) > before:
                budget.reset()
            # An engine that answers nonsense does so again, and one retry is all that such a failure gets.
            avoided = last if failure.kind is Failure.CONTRACT else None
            wait = budget.spend(failure)
            self.counters["retried"] += 1
            log.warning("rollout %s goes on from token %d in %.1f s: %s", draft.id, len(draft.tokens), wait, failure)
            await asyncio.sleep(wait)

    async def _stream(
        self, client: EngineClient, group: GroupDraft, draft: Draft, seed: int, guarded: GuardedRollout | None
    ) -> None:
        section, start = self._section, len(draft.tokens)
        if start and section.engine == "vllm":  # its random numbers restart with each request: use new ones
            seed = derive_seed(seed, start)
        events = client.stream(
            (*group.prompt_tokens, *draft.tokens),
            request_id=f"{draft.id}-{start}",
            seed=seed,
            max_tokens=self._limit(draft) - start,
            temperature=section.temperature,
            top_p=section.top_p,
            stop=self._stops,
        )
        track = f"{ENGINE}{client.url}"
        with self._spans.span(track, f"rollout {draft.id}", prompt=len(group.prompt_tokens), start=start) as facts:
            try:
                await self._read(client, events, draft, start, guarded)
            finally:
                facts["tokens"] = len(draft.tokens) - start

    async def _read(
        self,
        client: EngineClient,
        events: AsyncGenerator[StreamEvent, None],
        draft: Draft,
        start: int,
        guarded: GuardedRollout | None,
    ) -> None:
        """Takes in a stream that begins at token `start` of the draft, to the end of the rollout."""
        async with aclosing(events):
            async for event in events:
                if self._journal.undurable > self._section.journal_backlog:
                    await self._wait_for_disk()
                if isinstance(event, TokenDelta):
                    end = self._append(draft, event, start, guarded)
                elif event.reason not in (FinishReason.STOP, FinishReason.LENGTH):
                    raise RequestFailure(client.url, "aborted the request", Failure.CONNECTION)
                else:
                    end = self._named(draft, event)
                if end is not None:  # leaving closes the stream, which aborts a request that still runs
                    self._finish(draft, end, guarded)
                    return

    def _append(
        self, draft: Draft, delta: TokenDelta, resumed_at: int, guarded: GuardedRollout | None
    ) -> StreamEnd | None:
        """Appends a delta. Returns an end that the engine cannot see, if there is one.

        Such an end is a stop string that began before `resumed_at`, or the guard's stop.
        """
        end = None
        if resumed_at and len(draft.tokens) < resumed_at + self._window:
            for count in range(1, len(delta.tokens) + 1):
                end = self._stop_in([*draft.tokens[-self._window :], *delta.tokens[:count]])
                if end is not None:
                    delta = _first(delta, count)
                    break
        stopped_at = guarded.take(delta.tokens) if guarded is not None else None
        if stopped_at is not None:
            delta, end = _first(delta, stopped_at - len(draft.tokens)), StreamEnd(FinishReason.GUARD)
        self._journal.extend(draft, len(draft.tokens), delta)
        draft.extend(delta)
        self.counters["tokens"] += len(delta.tokens)
        return end or self._at_limit(draft)

    def _named(self, draft: Draft, end: StreamEnd) -> StreamEnd:
        """Returns the end with its stop string, if the engine was asked to stop at a special token's id instead."""
        if end.reason is FinishReason.STOP and end.stop is None and draft.tokens:
            return replace(end, stop=self._special.get(draft.tokens[-1]))
        return end

    async def _wait_for_disk(self) -> None:
        """Waits while the disk lags behind, so that the stream is not read.

        The network then holds the engine's answer back.
        """
        self.counters["held_back"] += 1
        while self._journal.undurable > self._section.journal_backlog:
            await asyncio.sleep(DISK_POLL_SECONDS)

    def _at_limit(self, draft: Draft) -> StreamEnd | None:
        """Returns the end of a draft that exceeds its token limit, because the engine ignores max_tokens. Else None."""
        return StreamEnd(FinishReason.LENGTH) if len(draft.tokens) > self._limit(draft) else None

    def _limit(self, draft: Draft) -> int:
        return draft.most_tokens or self._section.max_new_tokens

    def end_of(self, tokens: Sequence[int], limit: int) -> StreamEnd | None:
        """Returns the end that recovered tokens already contain, None if there is none. `limit`: maximum tokens."""
        if not tokens:
            return None
        if tokens[-1] in self._tokenizer.eos_ids:
            return StreamEnd(FinishReason.STOP)
        if tokens[-1] in self._special:
            return StreamEnd(FinishReason.STOP, self._special[tokens[-1]])
        end = self._stop_in(tokens[-self._window :])
        if end is None and len(tokens) >= limit:
            return StreamEnd(FinishReason.LENGTH)
        return end

    def _stop_in(self, tokens: Sequence[int]) -> StreamEnd | None:
        text = self._tokenizer.decode(tokens[-self._window :])
        stop = next((stop for stop in self._section.stop if stop in text), None)
        return StreamEnd(FinishReason.STOP, stop) if stop else None

    def _guarded(self, prompt: Prompt, limit: int) -> GuardedRollout | None:
        if self._guard is None:
            return None
        return GuardedRollout(
            self._guard(prompt),
            self._section.guard,
            decode=self._tokenizer.decode,
            stops=[stop for stop in self._section.stop if stop not in self._special.values()],
            ends=self._tokenizer.eos_ids | self._special.keys(),
            limit=limit,
        )

    def _finish(self, draft: Draft, end: StreamEnd, guarded: GuardedRollout | None) -> None:
        draft.reason, draft.stop = end.reason, end.stop
        draft.alarms = tuple(guarded.alarms) if guarded is not None else ()
        draft.text = text_of(self._tokenizer.decode(draft.tokens), end.stop)
        self.counters["finished"] += 1
        self.counters["truncated"] += end.reason is FinishReason.LENGTH
        self.counters["stopped"] += end.reason is FinishReason.GUARD
        self._journal.finish(draft)


def _first(delta: TokenDelta, count: int) -> TokenDelta:
    return replace(delta, tokens=delta.tokens[:count], logprobs=delta.logprobs[:count])


def text_of(decoded: str, stop: str | None) -> str:
    """Returns the rollout's text.

    It ends with its stop string, even if the last token goes beyond it or decodes to nothing.
    """
    if not stop or decoded.endswith(stop):
        return decoded
    head, found, _ = decoded.rpartition(stop)
    return head + found if found else decoded + stop
