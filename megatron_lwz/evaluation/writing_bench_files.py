"""Reads WritingBench's public files of both eras unchanged: queries with criteria, requirement subsets, score files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_lwz.errors import DataError
from megatron_lwz.reading import read_rows

Era = Literal["2025-03", "2025-04"]
"""Version of the benchmark.

2025-03: 1,239 queries and a lenient prompt. 2025-04 (from the 28th): 1,000 other queries and a strict prompt. Scores of
one era cannot be compared with scores of the other.
"""

ERA_KEYS: Mapping[Era, str] = {"2025-04": "checklist", "2025-03": "criteria"}
"""Maps each era to the key that holds a query's criteria. The key identifies the era of a file."""

PROMPT_ERAS: Mapping[str, Era] = {
    "writing-bench@251699697e7d": "2025-03",
    "writing-bench@ca71715a9b01": "2025-04",
}
"""Maps the version of the public prompt.py's wording to its era (commits cf2827a, 2f3650b of X-PLUG/WritingBench)."""

JUDGE_SAMPLING: Mapping[Era, Mapping[str, Any]] = {
    "2025-03": {"temperature": 0.7, "top_p": 0.8, "max_tokens": 2048},
    "2025-04": {"temperature": 1.0, "top_p": 0.95, "max_tokens": 2048},
}
"""Sampling settings of the judge in each era's scripts.

The first era's top-k of 20 is left out, because OpenAI's API has no such key.
"""

LEADERBOARD_JUDGES: Mapping[str, str] = {
    "2025-04-29": "Claude-3-7-Sonnet",
    "2025-09-05": "Claude-Sonnet-4",
    "2025-11-27": "Claude-Sonnet-4-5",
}
"""Maps the day from which the public leaderboard used a judge to its name (README of X-PLUG/WritingBench).

The queries stayed those of 2025-04, but scores of different judges are not on one scale.
"""

REQUIREMENTS = ("style", "format", "length")
DOMAINS = (
    "Academic & Engineering",
    "Finance & Business",
    "Politics & Law",
    "Literature & Arts",
    "Education",
    "Advertising & Marketing",
)
"""Domains D1 to D6, in the order of the public table."""

Scores = Mapping[str, Sequence[Mapping[str, Any]]]
"""Maps each criterion to its evaluations, each with at least `score` and `reason`."""


@dataclass(frozen=True)
class Query:
    """One query. `criteria` maps names to criteria as in the file. A repeated name counts once, as in the scripts."""

    index: int
    text: str
    domain: str
    subdomain: str
    criteria: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Subset:
    """The queries with a requirement, and for each query the names of the criteria about this requirement."""

    queries: Sequence[int]
    criteria: Mapping[int, Sequence[str]]


@dataclass(frozen=True)
class Benchmark:
    """One era of WritingBench."""

    era: Era
    queries: Mapping[int, Query]
    subsets: Mapping[str, Subset]


def read_benchmark(path: Path) -> Benchmark:
    """Reads the repository's folder, its benchmark_query folder, or benchmark_all.jsonl (with `requirement` beside it).

    Raises DataError, for example when subsets and queries are of different eras.
    """
    file = next((file for file in _candidates(path) if file.is_file()), None)
    if file is None:
        raise DataError(path, "no benchmark_all.jsonl here: name the folder of WritingBench")
    era, queries = _read_queries(file)
    subsets = {}
    for name in REQUIREMENTS:
        folder = file.parent / "requirement" / name
        if folder.is_dir():
            subsets[name] = _read_subset(folder, name, era, queries)
    return Benchmark(era, queries, subsets)


def leaderboard_since(judge: str) -> str | None:
    """Returns the day from which the public leaderboard used the model `judge` names, None for any other model.

    Names of vendors and gateways are read too: `claude-sonnet-4-5-20250929`, `anthropic/claude-3.7-sonnet`.
    """
    name = re.sub(r"[._\s]", "-", judge.lower())
    for day, known in LEADERBOARD_JUDGES.items():
        if re.search(rf"(?<![a-z\d]){known.lower()}(?!-?\d{{1,2}}(?!\d))(?![a-z\d])", name):
            return day
    return None


def judges_of(scores: Mapping[int, Scores]) -> list[str]:
    """Returns the models that gave scores, as far as the scores name them: ours do, those of the public script do not."""
    named = {str(e["judge"]) for found in scores.values() for es in found.values() for e in es if "judge" in e}
    return sorted({name.rpartition("/")[0] or name for name in named})


def find_prompt(path: Path) -> Path | None:
    """Returns the public prompt.py of the copy that `path` belongs to, None if there is none."""
    folders = (path, path.parent, path.parent.parent)
    return next((folder / "prompt.py" for folder in folders if (folder / "prompt.py").is_file()), None)


def read_scores(path: Path, benchmark: Benchmark) -> tuple[dict[int, Scores], int]:
    """Returns scores by query index, and the number of rows left out because a later row has the same index.

    When the public script resumes, it scores the last row again. Only the later row counts. Raises DataError for scores
    that are not of this benchmark.
    """
    found: dict[int, Scores] = {}
    repeated = 0
    for row in read_rows(path):
        index, scores = row.value.get("index"), row.value.get("scores")
        if type(index) is not int or not isinstance(scores, dict):
            raise row.error('a row of scores reads {"index": …, "scores": {criterion: [{"score", "reason"}]}}')
        query = benchmark.queries.get(index)
        strange = [name for name in scores if query is None or name not in query.criteria]
        if query is None or strange:
            what = f"criterion {strange[0]!r}" if strange and query else f"index {index}"
            of = f"is not in the benchmark of {benchmark.era}"
            raise row.error(f"{what} {of}: these are scores of the other era, or of other queries")
        for name, evaluations in scores.items():
            if not evaluations or not isinstance(evaluations, list) or not all(map(_is_score, evaluations)):
                raise row.error(f"{name!r} of query {index} must hold scores from 1 to 10")
        wanted = [name for subset in benchmark.subsets.values() for name in subset.criteria.get(index, ())]
        missing = [name for name in wanted if name not in scores]
        if missing or not scores:
            raise row.error(f"query {index} has no scores for {[*missing, *query.criteria][0]!r}: judge it again")
        repeated += index in found
        found[index] = scores
    if not found:
        raise DataError(path, "no scores in this file")
    return found, repeated


def _candidates(path: Path) -> list[Path]:
    name = "benchmark_all.jsonl"
    return [path, path / name, path / "benchmark_query" / name]


def _read_queries(file: Path) -> tuple[Era, dict[int, Query]]:
    era: Era | None = None
    queries: dict[int, Query] = {}
    for row in read_rows(file):
        its = next((era for era, key in ERA_KEYS.items() if key in row.value), None)
        if its is None:
            raise row.error(f"no criteria: a query has one of {', '.join(ERA_KEYS.values())}")
        if era is not None and its != era:
            raise row.error(f"this query is of {its}, those before are of {era}: eras must not be mixed")
        era = its
        try:
            query = _query(row.value, ERA_KEYS[era])
        except (KeyError, TypeError, ValueError) as error:
            raise row.error(f"not a query of WritingBench ({error!r})") from error
        if query.index in queries:
            raise row.error(f"index {query.index} stands there twice")
        queries[query.index] = query
    if era is None:
        raise DataError(file, "no queries in this file")
    return era, queries


def _query(row: Mapping[str, Any], key: str) -> Query:
    criteria: dict[str, Mapping[str, Any]] = {}
    for criterion in row[key]:
        criteria.setdefault(criterion["name"], criterion)
    domains = [row.get(name) or "" for name in ("domain1", "domain2")]
    if type(row["index"]) is not int or not isinstance(row["query"], str) or not criteria:
        raise ValueError("index, query or criteria")
    if not all(isinstance(name, str) for name in (*domains, *criteria)):
        raise ValueError("domain1, domain2 or the name of a criterion")
    return Query(row["index"], row["query"], domains[0], domains[1], criteria)


def _read_subset(folder: Path, name: str, era: Era, queries: Mapping[int, Query]) -> Subset:
    members: list[int] = []
    criteria: dict[int, list[str]] = {}
    for file in (folder / f"{name}_subset.jsonl", folder / f"{name}_subset_C.jsonl"):
        for row in read_rows(file):
            index, listed = row.value.get("index"), row.value.get(ERA_KEYS[era])
            query = queries.get(index) if type(index) is int else None
            listed = listed if isinstance(listed, list) else None
            names = [str(criterion.get("name")) for criterion in listed or () if isinstance(criterion, dict)]
            if query is None or listed is None or not set(names) <= set(query.criteria):
                of = f"is not the one of the benchmark of {era}"
                raise row.error(f"query {index!r:.80} {of}: take the subsets of the same version")
            if file.name.endswith("_C.jsonl"):
                criteria[query.index] = names
            else:
                members.append(query.index)
    return Subset(members, criteria)


def scores_as_row(index: int, scores: Scores) -> str:
    """Returns one line of a score file that the public calculate_scores.py can read."""
    return json.dumps({"index": index, "scores": scores}, ensure_ascii=False)


def _is_score(evaluation: Any) -> bool:
    score = evaluation.get("score") if isinstance(evaluation, dict) else None
    return isinstance(score, (int, float)) and not isinstance(score, bool) and 1 <= score <= 10
