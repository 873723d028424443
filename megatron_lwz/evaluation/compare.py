"""Compares the evaluations of several runs. Figures from different evaluation conditions never share a row."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lwz import reading
from megatron_lwz.errors import DataError
from megatron_lwz.evaluation import constory, curve, hello_bench, longbench_write, longgen_bench, measure
from megatron_lwz.evaluation.arena_write import Game, Tournament, elo_difference
from megatron_lwz.evaluation.statistics import Estimate, estimate

_FAULTS = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError)
"""Errors of a file that is JSON but has another form."""
KINDS = ("arena_write", "writing_bench", "longbench_write", "hello_bench", "longgen_bench", "constory", "curve", "text")
"""The results that are compared, in the order in which they are shown."""
FILES = tuple(f"{kind}.json" for kind in KINDS)
UNJUDGED: Mapping[str, Collection[str]] = {
    "longbench_write": ("s_l",),
    "hello_bench": tuple(hello_bench.MEASURED),
    "longgen_bench": tuple(longgen_bench.MEASURED),
    "constory": tuple(constory.MEASURED),
    "curve": (*curve.MEASURED, *(curve.CHANGE + name for name in curve.MEASURED)),
    "text": tuple(measure.LABELS),
}
"""Maps each kind to its metrics without a judge, which compare whoever judged the others."""
_LABELS: Mapping[str, Mapping[str, str]] = {
    "longbench_write": longbench_write.LABELS,
    "hello_bench": hello_bench.MEASURED,
    "longgen_bench": longgen_bench.LABELS,
    "constory": constory.LABELS,
    "curve": curve.LABELS,
    "text": measure.LABELS,
}


@dataclass(frozen=True, order=True)
class Row:
    """The key of a figure: its benchmark, its condition (era, judge, judge prompt, anchor), and its name."""

    benchmark: str
    condition: str
    metric: str


@dataclass(frozen=True)
class Run:
    """The evaluations of one run.

    `values` maps a figure that is a mean over prompts to prompt → value. `tournaments` maps an Elo to its games.
    """

    name: str
    figures: Mapping[Row, Estimate]
    values: Mapping[Row, Mapping[str, float]]
    tournaments: Mapping[Row, Tournament]


def read_run(folder: Path, name: str = "") -> Run:
    """Reads every result file of the evaluation commands in `folder`. Raises DataError."""
    figures: dict[Row, Estimate] = {}
    values: dict[Row, dict[str, float]] = {}
    tournaments: dict[Row, Tournament] = {}
    for file in (folder / name for name in FILES):
        if not file.is_file():
            continue
        try:
            result = reading.read_object(file)
        except DataError as error:
            raise DataError(file, f"not a result of lwz evaluate: {error.advice}") from error
        try:
            found = _figures(result, file.stem)
            figures |= found
            values |= _values(folder, result, found)
            tournaments |= _tournaments(folder, result, found)
        except _FAULTS as error:
            raise DataError(file, f"not a result of lwz evaluate ({error!r})") from error
    if not figures:
        raise DataError(folder, f"no evaluation here: expected one of {', '.join(FILES)}")
    return Run(name or folder.resolve().name, figures, values, tournaments)


def difference(run: Run, reference: Run, row: Row) -> Estimate | None:
    """Returns run − reference over the prompts that both have.

    It is the mean of the prompts' differences. For Elo, it is the difference of the ratings under the same resamples of
    prompts. This pairing gives a surer result than two separate intervals.
    """
    if row in run.tournaments and row in reference.tournaments:
        return elo_difference(run.tournaments[row], reference.tournaments[row])
    mine, theirs = run.values.get(row, {}), reference.values.get(row, {})
    return estimate([mine[prompt] - theirs[prompt] for prompt in mine if prompt in theirs])


def rows(runs: Sequence[Run]) -> list[Row]:
    """Returns every row that some run has, by benchmark, then by condition, then in the order of the runs' figures."""
    found = list(dict.fromkeys(row for run in runs for row in run.figures))
    conditions = list(dict.fromkeys(row.condition for row in found))
    return sorted(found, key=lambda row: (KINDS.index(row.benchmark), conditions.index(row.condition)))


def mixed(found: Sequence[Row]) -> list[str]:
    """Returns the benchmarks whose runs were evaluated under different conditions. Their rows cannot be compared."""
    conditions: dict[str, set[str]] = {}
    for row in found:
        if row.metric not in UNJUDGED.get(row.benchmark, ()):
            conditions.setdefault(row.benchmark, set()).add(row.condition)
    return [name for name, several in conditions.items() if len(several) > 1]


def label(row: Row) -> str:
    """Returns the metric's name in tables."""
    base = row.metric.removeprefix(curve.CHANGE)
    return _LABELS.get(row.benchmark, {}).get(base, base) + (", change" if base != row.metric else "")


def judge_name(judge: Mapping[str, Any]) -> str:
    """Returns who judged, by a result's record of its judge: the model asked for, and the one that the server named."""
    asked, answered = str(judge.get("model") or ""), [str(name) for name in judge.get("answered_by") or ()]
    others = [name for name in answered if name != asked]
    return f"{asked} (answered by {' and '.join(answered)})" if others else asked


def _figures(result: Mapping[str, Any], kind: str) -> dict[Row, Estimate]:
    if result["kind"] != kind:
        raise ValueError(f"kind {result['kind']!r:.80}")
    found = {}
    for metric, value in result["metrics"].items():
        if metric.startswith(("Domain2", "Category_")):
            continue
        condition = _condition(result, judged=metric not in UNJUDGED.get(kind, ()))
        figure = Estimate(**{name: _number(part) for name, part in value.items()})
        if figure.low > figure.high:
            raise ValueError(f"{metric} from {figure.low} to {figure.high}")
        found[Row(kind, condition, metric)] = figure
    return found


def _values(folder: Path, result: Mapping[str, Any], figures: Mapping[Row, Estimate]) -> dict[Row, dict[str, float]]:
    """Reads the value of each prompt from the rows beside a result. Several responses to a prompt are averaged."""
    kind = result["kind"]
    collected: dict[Row, dict[str, list[float]]] = {}
    if kind == "writing_bench":
        overall = [row for row in figures if row.metric == "Overall"]
        for row in reading.read_rows(folder / result["scores"]) if "scores" in result and overall else ():
            with _named(row):
                judged = [e["score"] for evaluations in row.value["scores"].values() for e in evaluations]
                collected.setdefault(overall[0], {})[str(row.value["index"])] = [_number(score) for score in judged]
    elif (folder / f"{kind}_rows.jsonl").is_file():
        for row in reading.read_rows(folder / f"{kind}_rows.jsonl"):
            for figure in figures:
                if figure.metric in row.value:
                    with _named(row):
                        found = collected.setdefault(figure, {}).setdefault(str(row.value["id"]), [])
                        found.append(_number(row.value[figure.metric]))
    return {row: {prompt: sum(v) / len(v) for prompt, v in prompts.items()} for row, prompts in collected.items()}


def _tournaments(folder: Path, result: Mapping[str, Any], figures: Mapping[Row, Estimate]) -> dict[Row, Tournament]:
    path = folder / "arena_write_games.jsonl"
    if result["kind"] != "arena_write" or not path.is_file():
        return {}
    games = []
    for row in reading.read_rows(path):
        with _named(row):
            game = Game(**row.value)
            if not all(isinstance(name, str) for name in (game.prompt, game.first, game.second)):
                raise ValueError("prompt, first and second are texts")
            _number(game.score)
            games.append(game)
    return {
        row: Tournament(str(result["name"]), str(result["anchor"]), games) for row in figures if row.metric == "Elo"
    }


def _condition(result: Mapping[str, Any], *, judged: bool) -> str:
    """Returns the conditions that must be equal for figures to be comparable."""
    parts = [result.get("cut")]
    if judged:
        judge = result.get("judge") or {}
        parts += [result.get("era"), judge_name(judge), judge.get("wording") or result.get("wording")]
        parts.append(result.get("prompt_version"))
    if "anchor" in result:
        opponents = sorted(set(result["elo"]) - {result["name"]})
        parts.append(f"{result['anchor']} at {result['anchor_elo']:g}, against {', '.join(opponents)}")
    return ", ".join(str(part) for part in parts if part)


@contextmanager
def _named(row: reading.Row) -> Iterator[None]:
    """Names the row in errors of a form that is not ours. Raises DataError."""
    try:
        yield
    except _FAULTS as error:
        raise row.error(f"not a row of lwz evaluate ({error!r})") from error


def _number(value: Any) -> Any:
    """Returns a finite number as it is. Raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r:.80} is no number")
    return value
