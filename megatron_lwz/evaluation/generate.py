"""Generates a response to every prompt of a file, in parallel, each response exactly once."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.data.markup import join
from megatron_lwz.data.templates import Style, render
from megatron_lwz.data.text.grammar import Template
from megatron_lwz.data.text.length import count_units
from megatron_lwz.errors import EngineError
from megatron_lwz.evaluation.partial import Partial, Partials
from megatron_lwz.evaluation.presets import Sampling
from megatron_lwz.evaluation.response_file import ResponseFile
from megatron_lwz.evaluation.responses import cut
from megatron_lwz.evaluation.tasks import Task
from megatron_lwz.http.completions import Completion, CompletionClient, CompletionFailure
from megatron_lwz.http.retry import RequestFailure, RetryBudget
from megatron_lwz.types import Prompt

FLUSH_SECONDS = 0.5
"""Seconds between two writes of the unfinished responses."""
LEFT_OUT = frozenset({"checklist", "criteria", "baseline_response"})
"""Keys of prompt rows that are not copied into responses: they are long and only the benchmark needs them."""


@dataclass(frozen=True)
class Plan:
    """How responses are generated.

    With `template` None, the prompt is sent as it is, for chat models. With `row`, each row names its template (think
    by default). `encode` returns the token ids of a text, which the completions API gets in its place, so that control tokens which
    a prompt spells out stay text. `context` is the engine's context length in tokens. Both are None when only the server
    knows.
    """

    sampling: Sampling
    template: Template | Literal["row"] | None
    style: Style = "paper"
    samples: int = 1
    seed: int = 0
    concurrency: int = 16
    retries: int = 5
    backoff: float = 0.5
    encode: Callable[[str], list[int]] | None = None
    context: int | None = None


@dataclass
class Progress:
    """Progress of `generate`. `characters` counts all generated text, including that of unfinished responses."""

    total: int
    done: int = 0
    words: int = 0
    truncated: int = 0
    failed: int = 0
    characters: int = 0


async def generate(
    tasks: Sequence[Task],
    client: CompletionClient,
    file: ResponseFile,
    plan: Plan,
    shown: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Adds every response that `file` lacks.

    Raises EngineError early when none of the first requests is answered, and at the end when some responses failed. The
    other responses are kept. Calling it again retries the failed ones.
    """
    wanted = [(task, sample) for sample in range(plan.samples) for task in tasks]
    missing = [(task, sample) for task, sample in wanted if (task.id, sample) not in file.done]
    progress = Progress(len(wanted), len(wanted) - len(missing))
    work = iter(missing)
    failures: Counter[str] = Counter()
    last: RequestFailure | None = None
    answered = 0

    def heard(characters: int) -> None:
        progress.characters += characters
        shown(progress)

    async def worker() -> None:
        nonlocal last, answered
        for task, sample in work:  # all workers share one iterator, so each item is taken once
            try:
                row = await _respond(client, task, sample, plan, file.partials, heard)
            except RequestFailure as failure:
                last, progress.failed = failure, progress.failed + 1
                failures[failure.kind.value] += 1
                if not answered and progress.failed >= min(plan.concurrency, len(missing)):
                    raise
            else:
                answered += 1
                file.add((task.id, sample), row)
                progress.done += 1
                progress.words += row["response_length"]
                progress.truncated += row["finish_reason"] == "length"
            shown(progress)

    shown(progress)
    flushing = asyncio.create_task(_flush(file.partials))
    lost: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(plan.concurrency, len(missing))):
                group.create_task(worker())
    except* EngineError as failed:
        lost = failed.exceptions[0]
    finally:
        flushing.cancel()
    if lost is not None:  # if raised inside `except*`, early releases of Python 3.11 would wrap it into a group again
        raise lost
    if last is not None:
        kinds = ", ".join(f"{count} {name}" for name, count in failures.most_common())
        advice = (
            f"{progress.failed} of {len(missing)} responses failed ({kinds}), run again to try them; the last: {last}"
        )
        raise EngineError(client.url, advice)
    return progress


def prompt_text(task: Task, plan: Plan) -> str:
    """Returns a task's prompt as it is sent."""
    template = template_of(task, plan)
    return render(Prompt(task.id, task.prompt, template=template), plan.style) if template else task.prompt


def template_of(task: Task, plan: Plan) -> Template | None:
    """Returns the template of a task's prompt."""
    if plan.template == "row":
        return "direct" if task.row.get("template") == "direct" else "think"
    return plan.template


async def _flush(partials: Partials) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        partials.flush()


async def _respond(
    client: CompletionClient,
    task: Task,
    sample: int,
    plan: Plan,
    partials: Partials,
    heard: Callable[[int], None],
) -> dict[str, Any]:
    """Generates one response and returns its row.

    If the server can continue a text, generation resumes after the text received so far, by this process or by one that
    was killed.
    """
    template = template_of(task, plan)
    text, key, begin = prompt_text(task, plan), (task.id, sample), time.monotonic()
    budget = RetryBudget(plan.retries, base_seconds=plan.backoff, max_seconds=60 * plan.backoff)
    while True:
        before, counted = partials.get(key), 0

        def take(piece: str, tokens: int) -> None:
            nonlocal counted
            heard(len(piece))
            if client.continues and (piece or tokens):  # a server that sends no count streams one token at a time
                partials.add(key, piece, tokens - counted if tokens else 1)
                counted = tokens

        settings = _settings(text, before, task, sample, plan, template)
        try:
            if settings["max_tokens"] <= 0:
                done = Completion("", "length")
            else:
                asked = join(text, before.text)
                sent = plan.encode(asked) if plan.encode is not None and client.continues else asked
                done = await client.complete(sent, settings=settings, heard=take)
            break
        except CompletionFailure as failure:
            if partials.get(key) != before:
                budget.reset()
            await asyncio.sleep(max(budget.spend(failure), failure.retry_after))
    whole = replace(done, text=before.text + done.text)
    if done.completion_tokens:
        whole = replace(whole, completion_tokens=_tokens(before, plan) + done.completion_tokens)
    return _row(task, sample, template, whole) | {"seconds": round(time.monotonic() - begin, 2)}


def _settings(
    text: str, before: Partial, task: Task, sample: int, plan: Plan, template: Template | None
) -> dict[str, Any]:
    sampling, seed = plan.sampling, _seed(plan.seed, task.id, sample)
    left = sampling.max_tokens - _tokens(before, plan)
    if plan.encode is not None and plan.context is not None:
        left = min(left, max(1, plan.context - len(plan.encode(text))) - _tokens(before, plan))
    if before.text:  # a new request restarts the sampler, which must not repeat the random numbers of the first one
        seed = _seed(seed, task.id, len(before.text))
    settings = replace(sampling, max_tokens=left).as_json() | {"seed": seed}
    if not sampling.top_k:
        del settings["top_k"]  # not a key of OpenAI's own
    if template is not None:
        settings["stop"] = list(RolloutSection().stop)
    return settings


def _tokens(before: Partial, plan: Plan) -> int:
    return len(plan.encode(before.text)) if plan.encode is not None and before.text else before.tokens


def _seed(seed: int, identity: str, sample: int) -> int:
    """Returns a 31-bit seed that differs between responses and is the same in every run."""
    digest = hashlib.sha256(f"{seed}/{identity}/{sample}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _row(task: Task, sample: int, template: Template | None, done: Completion) -> dict[str, Any]:
    written = cut(done.text, template, stop=done.stop, prompt=task.prompt)
    row: dict[str, Any] = {key: value for key, value in task.row.items() if key not in LEFT_OUT}
    row |= {"id": task.id, "sample": sample, "response": written.answer, "response_length": count_units(written.answer)}
    if done.text != written.answer:
        row["raw"] = done.text
    if done.thinking:  # the server returned it separately
        row["thinking"] = done.thinking
    if template is not None:
        row |= {"template": template, "raw": done.text, "fault": written.fault}
    row |= {"finish_reason": done.finish_reason, "stop": done.stop, "model": done.model}
    if done.completion_tokens:
        row["tokens"] = done.completion_tokens
    return row


def settings_of(plan: Plan, model: str) -> Mapping[str, Any]:
    """Returns the settings that a response file records about its generation."""
    return {
        "model": model,
        "template": plan.template,
        "style": plan.style,
        "seed": plan.seed,
        **plan.sampling.as_json(),
    }
