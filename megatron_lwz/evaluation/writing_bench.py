"""WritingBench: judges every criterion of every query, and aggregates scores as the public script does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_lwz.evaluation.asking import Shown, ask_all
from megatron_lwz.evaluation.judge_prompts import criterion_question
from megatron_lwz.evaluation.responses import Response
from megatron_lwz.evaluation.statistics import Estimate, estimate
from megatron_lwz.evaluation.writing_bench_files import DOMAINS, REQUIREMENTS, Benchmark, Scores
from megatron_lwz.rewards.judge_client import Judge
from megatron_lwz.rewards.judge_json import as_score, read_object


@dataclass(frozen=True)
class Judged:
    """Scores of the queries with a score for every criterion, and the indices of the incomplete queries."""

    scores: Mapping[int, Scores]
    incomplete: Sequence[int]


async def judge_responses(
    benchmark: Benchmark,
    responses: Sequence[Response],
    judge: Judge,
    *,
    public: tuple[str, str] | None = None,
    evaluations: int = 1,
    shown: Shown = lambda *_: None,
) -> Judged:
    """Asks one question per criterion and evaluation. `public` is the benchmark's own (system, template).

    If a criterion gets no verdict, its whole query is left out: the mean of the other criteria would not be comparable.
    Raises EngineError for a judge that answers nothing.
    """
    asked = [
        (int(response.id), name, sample, response.text)
        for response in responses
        for name in benchmark.queries[int(response.id)].criteria
        for sample in range(evaluations)
    ]
    questions = [
        criterion_question(query.text, text, query.criteria[name], public, sample=sample)
        for index, name, sample, text in asked
        for query in (benchmark.queries[index],)
    ]
    verdicts = await ask_all(judge, questions, read_score, shown)
    scores: dict[int, dict[str, list[dict[str, Any]]]] = {}
    incomplete: set[int] = set()
    for (index, name, _, _), verdict in zip(asked, verdicts, strict=True):
        if verdict is None:
            incomplete.add(index)
        else:
            found = verdict.value | {"judge": verdict.judge}
            scores.setdefault(index, {}).setdefault(name, []).append(found)
    return Judged({i: s for i, s in sorted(scores.items()) if i not in incomplete}, sorted(incomplete))


def read_score(reply: str) -> dict[str, Any] | None:
    """Returns {"score": 1 … 10, "reason": text} of a reply, None if the reply has no valid score."""
    found = read_object(reply, ("score", "reason"))
    score = as_score(found["score"], 1, 10) if found else None
    return {"score": score, "reason": str(found["reason"])} if found and score is not None else None


def aggregate(benchmark: Benchmark, scores: Mapping[int, Scores]) -> dict[str, Estimate]:
    """Computes the figures of the public calculate_scores.py, on the scale of 1 to 10, under its column names.

    Overall: mean over all evaluations pooled. Domain: mean over its queries of their mean over all their evaluations.
    {requirement}_R: mean over the subset's queries. {requirement}_C: mean over the subset's own criteria, each the mean
    of its evaluations. Intervals resample queries. A figure without any query is left out (the script gives 0).
    """
    means = {index: _mean([e["score"] for es in found.values() for e in es]) for index, found in scores.items()}
    every = [(e["score"], index) for index, found in scores.items() for es in found.values() for e in es]
    groups: dict[str, list[tuple[float, int]]] = {"Overall": every}
    for prefix, of, order in _domains(benchmark):
        for domain in order:
            inside = [i for i in scores if of(i) == domain]
            groups[f"{prefix}_{domain}"] = [(means[i], i) for i in inside]
    for name in REQUIREMENTS:
        if name not in benchmark.subsets:
            continue
        subset = benchmark.subsets[name]
        inside = [index for index in subset.queries if index in scores]
        groups[f"{name}_R"] = [(means[i], i) for i in inside]
        groups[f"{name}_C"] = [
            (_mean([e["score"] for e in scores[i][criterion]]), i)
            for i in inside
            for criterion in subset.criteria.get(i, ())
        ]
    found = {name: estimate([v for v, _ in values], [i for _, i in values]) for name, values in groups.items()}
    return {name: value for name, value in found.items() if value is not None}


def _domains(benchmark: Benchmark) -> list[tuple[str, Callable[[int], str], list[str]]]:
    """Returns (column prefix, function from index to domain, domains in order) for both levels of domains."""
    queries = benchmark.queries.values()
    first = [*DOMAINS, *sorted({query.domain for query in queries} - {*DOMAINS, ""})]
    second = sorted(
        {(first.index(query.domain), query.subdomain) for query in queries if query.domain and query.subdomain}
    )
    return [
        ("Domain1", lambda index: benchmark.queries[index].domain, first),
        ("Domain2", lambda index: benchmark.queries[index].subdomain, list(dict.fromkeys(name for _, name in second))),
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
