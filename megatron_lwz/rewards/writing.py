"""The writing reward (LongWriter-Zero, section 3.1): a reward model's score of the answer, requested over HTTP.

A slow, wrong or silent server costs scores but does not stop the run: missing scores are masked and counted.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from megatron_lwz.config.sections import WritingReward
from megatron_lwz.data.preferences.rendering import Rendering, Reply
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.decoding import OTHER_SHAPE, decode_json
from megatron_lwz.distributed import environment
from megatron_lwz.errors import ConfigError
from megatron_lwz.http.retry import Failure, RequestFailure, RetryBudget, no_connection
from megatron_lwz.http.session import HttpSession, is_address, quoted, read_bounded
from megatron_lwz.rewards.per_rollout import PerRollout
from megatron_lwz.types import ComponentScore, Prompt, Rollout, is_score

log = logging.getLogger(__name__)

_MOST_BYTES = 32 << 20
_LONGEST_WAIT = 30.0


class WritingComponent(HttpSession, PerRollout):
    """Requests the scores of a group's answers from lwz serve-reward or vLLM's pooling server.

    A rollout without an answer is not sent. Its score is invalid, like that of a text which the server rejects or to
    which it gives a number that cannot be a score.
    Details: `raw` (the model's own number). `metrics()` counts requests and masked scores, by reason.
    """

    name = "writing"

    def __init__(self, section: WritingReward, token: str | None = None) -> None:
        """Takes `token`; None reads it from the variable `reward.writing.api_key_env`. Raises ConfigError."""
        url = section.url or ""
        if not is_address(url):
            raise ConfigError(
                "reward.writing.url", section.url, "not an address: write http://host:port of lwz serve-reward or vLLM"
            )
        if section.api != "score" and not section.model:
            raise ConfigError("reward.writing.model", section.model, "name the model that the vLLM server serves")
        super().__init__(
            token if token is not None else environment.get(section.api_key_env),
            aiohttp.ClientTimeout(total=section.timeout, sock_connect=min(10.0, section.timeout)),
        )
        self._section = section
        self._url = self.address = f"{url.rstrip('/')}/{section.api}"
        self._rendering = Rendering(section.template, section.thinking, section.end)
        self.counters: Counter[str] = Counter()

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        """Returns one score per rollout; it is invalid without an answer or a verdict."""
        replies = [self._reply(prompt, rollout) for rollout in rollouts]
        asked = [place for place, reply in enumerate(replies) if reply.answer.strip()]
        self._mask("no answer", len(replies) - len(asked))
        scores = [ComponentScore(0.0, valid=False, version=self.name)] * len(rollouts)
        size = self._section.batch
        parts = [asked[start : start + size] for start in range(0, len(asked), size)]
        answers = await asyncio.gather(*(self._ask(prompt.text, [replies[place] for place in part]) for part in parts))
        for part, answer in zip(parts, answers, strict=True):
            for place, raw in zip(part, answer.scores, strict=True):
                if raw is not None:
                    scores[place] = ComponentScore(self._shape(raw), details={"raw": raw}, version=answer.version)
        return scores

    def metrics(self) -> dict[str, float]:
        """Returns the counts since the start of the process."""
        return {f"writing/{name}": float(count) for name, count in self.counters.items()}

    def _reply(self, prompt: Prompt, rollout: Rollout) -> Reply:
        parsed = parse_rollout(prompt, rollout)
        return Reply(parsed.answer or "", (parsed.think or "") if self._section.thinking else "")

    async def _ask(self, prompt: str, replies: Sequence[Reply]) -> _Answer:
        """Returns the server's answer after as many attempts as the section allows; all None after the last failure."""
        section = self._section
        budget = RetryBudget(section.retries, base_seconds=section.backoff, max_seconds=_LONGEST_WAIT)
        body = self._body(prompt, replies)
        while True:
            self.counters["requests"] += 1
            try:
                answer = self._read(await self._post(body), len(replies))
            except RequestFailure as failure:
                try:
                    wait = budget.spend(failure)
                except RequestFailure:
                    self._mask(failure.kind.value, len(replies), failure)
                    return _Answer([None] * len(replies), self.name)
                self.counters["retried"] += 1
                await asyncio.sleep(wait)
                continue
            self.counters["scored"] += len(replies) - answer.scores.count(None)
            self._mask("refused text", answer.scores.count(None))
            return answer

    def _body(self, prompt: str, replies: Sequence[Reply]) -> dict[str, Any]:
        if self._section.api == "score":
            items = [{"prompt": prompt, "answer": reply.answer, "thinking": reply.thinking} for reply in replies]
            return {"items": items}
        texts = [self._rendering(prompt, reply) for reply in replies]
        body: dict[str, Any] = {"model": self._section.model, "input": texts, "use_activation": False}
        return body | {"task": "classify"} if self._section.api == "pooling" else body

    async def _post(self, body: dict[str, Any]) -> Any:
        """Returns the decoded answer. Raises RequestFailure."""
        try:
            async with self.session.post(self._url, json=body, allow_redirects=False) as response:
                data = await read_bounded(response, _MOST_BYTES)
                if response.status != 200:
                    said = quoted(data, 300)
                    busy = response.status >= 500 or response.status in (408, 429)
                    kind = Failure.SERVER if busy else Failure.REFUSED
                    raise RequestFailure(self._url, f"answered {response.status}: {said}", kind)
                return decode_json(data)
        except RequestFailure:
            raise
        except TimeoutError as error:
            raise RequestFailure(self._url, f"no answer within {self._section.timeout:g} s", Failure.TIMEOUT) from error
        except (aiohttp.ClientError, OSError) as error:
            raise RequestFailure(self._url, no_connection(error), Failure.CONNECTION) from error
        except ValueError as error:
            raise RequestFailure(self._url, f"answered no JSON ({error})", Failure.CONTRACT) from error

    def _read(self, answer: Any, count: int) -> _Answer:
        """Returns the scores in order. Raises RequestFailure for an answer of another shape."""
        try:
            if self._section.api == "score":
                version = f"{answer['model']}@{answer['version']}"
                scores = [None if score is None else _number(score) for score in answer["scores"]]
            else:
                version = str(answer.get("model") or self._section.model)
                rows = sorted(answer["data"], key=lambda row: row["index"])
                scores = [_only(row["data" if self._section.api == "pooling" else "probs"]) for row in rows]
            if len(scores) != count:
                raise ValueError(f"{len(scores)} scores for {count} texts")
            return _Answer(scores, f"{self.name}/{version[:200]}")
        except OTHER_SHAPE as error:
            raise RequestFailure(
                self._url, f"answered another shape than asked ({error!r})", Failure.CONTRACT
            ) from error

    def _shape(self, raw: float) -> float:
        return raw if self._section.transform == "none" else 0.5 + 0.5 * math.tanh(raw / 2)

    def _mask(self, reason: str, count: int, failure: RequestFailure | None = None) -> None:
        if not count:
            return
        name = f"masked/{reason.replace(' ', '_')}"
        if failure is not None and not self.counters[name]:  # only the first of each kind is logged
            log.warning("reward writing, masked: %s", failure)
        self.counters[name] += count


@dataclass(frozen=True)
class _Answer:
    scores: list[float | None]
    version: str


def _number(value: Any) -> float | None:
    """Returns a text's score; None for a number that cannot be one, like NaN. Raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is no score")
    return float(value) if is_score(value) else None


def _only(values: Any) -> float | None:
    """Returns the one number of a text's output, as `_number` does. Raises ValueError for a model with several."""
    (value,) = values if isinstance(values, list) else [values]
    return _number(value)
