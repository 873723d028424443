"""A language model that judges texts, behind any OpenAI-compatible server: parallel, cached, bounded in cost.

A question without a usable answer gives None and is counted. It never raises, so a slow, silent, wrong or hostile judge
costs verdicts but does not stop the run.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from megatron_lwz.config.sections import JudgeSection
from megatron_lwz.distributed import environment
from megatron_lwz.errors import ConfigError
from megatron_lwz.http.completions import CompletionClient, CompletionFailure
from megatron_lwz.http.retry import Failure, RequestFailure, RetryBudget
from megatron_lwz.http.session import Closing
from megatron_lwz.rewards.judge_cache import Reply, ReplyCache, cache_key

T = TypeVar("T")

log = logging.getLogger(__name__)

_CHARACTERS_PER_TOKEN = 2
"""Estimate for the budget only, before the server has counted: a safe estimate for English, about right for Chinese."""


@dataclass(frozen=True)
class Question:
    """One question to a judge.

    `version` names the wording of the prompt; `sample` distinguishes repeats of a question.
    """

    user: str
    version: str
    system: str | None = None
    sample: int = 0


def mark(text: str, name: str = "text") -> str:
    """Returns `text` between two marker lines that it cannot contain, because they hold its digest.

    So a judged text cannot pretend to have ended and then address the judge.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"=== {name} {digest} ===\n{text}\n=== end of {name} {digest} ==="


@dataclass(frozen=True)
class Verdict(Generic[T]):
    """A judge's parsed answer.

    `judge` = model (as its server reports) and prompt version; `text` is the whole reply.
    """

    value: T
    judge: str
    text: str
    cached: bool


class Judge(Closing):
    """Asks questions in parallel, inside one event loop.

    `async with` (or `close`) closes the connections and the cache. `counters`: asked, answered, cached, requests,
    retried, prompt_tokens, completion_tokens, malformed (replies that could not be parsed). Questions without a verdict
    are counted as failed/<class>: a Failure, malformed, budget, or resting (not asked, because the judge had just
    failed too often in a row). `answered_by` counts the verdicts by the model that the server (or the cache) names.
    """

    def __init__(self, section: JudgeSection, key: str | None = None) -> None:
        """Takes `key`; None reads it from the variable `judge.api_key_env`.

        Raises ConfigError, EngineError or DataError.
        """
        if not section.url:
            raise ConfigError("judge.url", section.url, "name the judge's server, e.g. http://127.0.0.1:8000/v1")
        if not section.model:
            raise ConfigError("judge.model", section.model, "name the model that the server judges with")
        self.counters: Counter[str] = Counter()
        self.answered_by: Counter[str] = Counter()
        self.last_failure: RequestFailure | None = None
        self._section = section
        self._client = CompletionClient(
            section.url,
            key if key is not None else environment.get(section.api_key_env),
            model=section.model,
            api=section.api,
            timeout=section.timeout,
            key_name=section.api_key_env,
        )
        self._cache = ReplyCache(section.cache)
        self.turns = asyncio.Semaphore(section.concurrency)
        """For callers with many long questions: limits the questions that are built to those that can be under way."""
        self._slots = asyncio.Semaphore(section.concurrency)
        self._budget = _Budget(section.max_requests, section.max_total_tokens)
        self._patience = _Patience(section.rest_after or 0, section.rest_seconds)
        self._running: dict[str, asyncio.Task[Reply | None]] = {}
        sampling = section.model_dump(include={"temperature", "top_p", "max_tokens"})
        self._settings = {name: value for name, value in (sampling | section.body).items() if value is not None}

    @classmethod
    def as_reward(cls, section: JudgeSection, key: str | None = None) -> Judge:
        """Returns a judge for rewards, which a run waits for.

        After too many failures in a row it is not asked for a while.
        """
        if section.rest_after is None:
            section = section.model_copy(update={"rest_after": 2 * section.concurrency})
        return cls(section, key)

    @property
    def url(self) -> str:
        """Address of the judge."""
        return self._client.url

    @property
    def concurrency(self) -> int:
        """Maximum number of questions under way at once."""
        return self._section.concurrency

    async def close(self) -> None:
        """Cancels the questions under way, then closes the connections and the cache."""
        await self.disconnect()
        self._cache.close()

    async def disconnect(self) -> None:
        """Cancels the questions under way and closes the connections. Another event loop may then ask."""
        for task in list(self._running.values()):
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await self._client.close()
        self.turns = asyncio.Semaphore(self._section.concurrency)
        self._slots = asyncio.Semaphore(self._section.concurrency)

    async def ask(self, question: Question, read: Callable[[str], T | None]) -> Verdict[T] | None:
        """Returns the verdict that `read` finds in the reply; None after every failure.

        If `read` returns None for a reply, the question is repeated, up to `judge.malformed_retries` times.
        """
        self.counters["asked"] += 1
        for attempt in range(self._section.malformed_retries + 1):
            key = cache_key(
                self._section.model, self._settings, question.version, question.system, question.user,
                question.sample, attempt,
            )  # fmt: skip
            reply = self._cache.get(key)
            cached = reply is not None
            if reply is None:
                reply = await self._fetch_once(key, question)
            if reply is None:
                return None
            value = read(reply.text)
            if value is not None:
                self.counters["answered"] += 1
                self.counters["cached"] += cached
                self.answered_by[reply.model] += 1
                return Verdict(value, f"{reply.model}/{question.version}", reply.text, cached)
            self.counters["malformed"] += 1
        self.counters["failed/malformed"] += 1
        return None

    def note(self, text: str, *parts: Any) -> str:
        """Keeps a text under `parts` (JSON values) beside this judge's replies, as durably. Returns the text that is kept.

        The first one stays. Raises DataError if it cannot be kept.
        """
        self._cache.put(self._note_key(parts), "note", Reply(text, self._section.model))
        kept = self.noted(*parts)
        return text if kept is None else kept

    def noted(self, *parts: Any) -> str | None:
        """Returns the text that `note` keeps under `parts`, None without one."""
        found = self._cache.get(self._note_key(parts))
        return found.text if found is not None else None

    def _note_key(self, parts: tuple[Any, ...]) -> str:
        return cache_key("note", self._section.model, self._settings, *parts)

    async def _fetch_once(self, key: str, question: Question) -> Reply | None:
        """Fetches the reply, once for equal questions at the same time.

        A reply under way is kept even if no caller waits for it any more.
        """
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._fetch(key, question))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)

    async def _fetch(self, key: str, question: Question) -> Reply | None:
        section = self._section
        budget = RetryBudget(section.retries, base_seconds=section.backoff, max_seconds=60 * section.backoff)
        async with self._slots:
            while True:
                if self._patience.resting():
                    self._fail("resting", None)
                    return None
                reserved = (
                    len(question.user) + len(question.system or "")
                ) // _CHARACTERS_PER_TOKEN + section.max_tokens
                if not self._budget.reserve(reserved):
                    self._fail("budget", None)
                    return None
                used = 0
                try:
                    reply = await self._request(question)
                    used = reply.prompt_tokens + reply.completion_tokens or reserved
                    self._patience.answered()
                    self._cache.put(key, question.version, reply)
                    return reply
                except CompletionFailure as failure:
                    self._patience.failed(failure)
                    try:
                        wait = max(budget.spend(failure), failure.retry_after)
                    except RequestFailure:
                        self._fail(failure.kind.value, failure)
                        return None
                finally:
                    self._budget.settle(reserved, used)
                self.counters["retried"] += 1
                await asyncio.sleep(wait)

    async def _request(self, question: Question) -> Reply:
        self.counters["requests"] += 1
        done = await self._client.complete(question.user, system=question.system, settings=self._settings)
        self.counters["prompt_tokens"] += done.prompt_tokens
        self.counters["completion_tokens"] += done.completion_tokens
        return Reply(done.text, done.model or self._section.model, done.prompt_tokens, done.completion_tokens)

    def _fail(self, kind: str, failure: RequestFailure | None) -> None:
        name = f"failed/{kind}"
        self.counters[name] += 1
        self.last_failure = failure or self.last_failure
        if self.counters[name] == 1:  # only the first of each kind is logged
            log.warning("judge %s: %s", self._section.model, failure or _REASONS[kind])


_REASONS = {
    "budget": "its budget is spent (judge.max_requests, judge.max_total_tokens)",
    "resting": "failed too often in a row and is left alone for a while (judge.rest_after, judge.rest_seconds)",
}


class _Patience:
    """Decides whether to ask a judge. After `limit` failures in a row it rests for `seconds`. Limit 0: it never rests.

    After the rest, a first wave of questions tests the judge. Its first failure starts the next rest.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._failures = 0
        self._until = 0.0

    def resting(self) -> bool:
        """Returns whether the judge rests now."""
        return time.monotonic() < self._until

    def failed(self, failure: CompletionFailure) -> None:
        """Records a failed request. A refusal concerns that question alone and does not count."""
        if failure.kind in (Failure.CONNECTION, Failure.TIMEOUT, Failure.SERVER):
            self._failures += 1
            if self._limit and self._failures >= self._limit:
                self._until = time.monotonic() + max(self._seconds, failure.retry_after)

    def answered(self) -> None:
        """Records an answer, which resets the count of failures."""
        self._failures = 0


class _Budget:
    """The budget of requests and tokens; 0 means no limit. A request under way counts with its maximum cost."""

    def __init__(self, requests: int, tokens: int) -> None:
        self._requests = requests
        self._tokens = tokens
        self._sent = 0
        self._spent = 0

    def reserve(self, tokens: int) -> bool:
        """Returns whether a request of up to `tokens` is allowed. If so, it counts from now on."""
        if self._requests and self._sent >= self._requests:
            return False
        if self._tokens and self._spent + tokens > self._tokens:
            return False
        self._sent += 1
        self._spent += tokens
        return True

    def settle(self, reserved: int, used: int) -> None:
        """Replaces a reservation by the request's actual cost."""
        self._spent += used - reserved
