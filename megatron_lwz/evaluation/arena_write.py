"""Arena-Write: pairs judged in both orders, Elo with intervals, win rates, and the judge's bias and consistency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from megatron_lwz.evaluation.asking import Shown, ask_all
from megatron_lwz.evaluation.bradley_terry import ELO, Games, bootstrap, online_elo
from megatron_lwz.evaluation.statistics import Estimate, estimate, levels
from megatron_lwz.evaluation.tasks import Task
from megatron_lwz.rewards.judge_client import Judge
from megatron_lwz.rewards.judge_prompts import pair_question, read_winner

LABELS = {
    "first_place_share": "score of the piece shown first (0.5: no position bias)",
    "first_place_elo": "position bias in Elo points (0: none)",
    "same_winner_in_both_orders": "same winner in both orders",
    "first_place_won_both": "the first place won in both orders",
    "second_place_won_both": "the second place won in both orders",
    "same_verdict_when_asked_again": "same verdict when asked again",
}
"""Maps each figure about the judge to its name in tables. All are shares of 1, except the Elo points."""


@dataclass(frozen=True)
class Game:
    """One verdict: the score of `first` against `second` on a prompt. `sample` numbers repeated questions."""

    prompt: str
    first: str
    second: str
    sample: int
    score: float
    judge: str = ""
    reply: str = ""


@dataclass(frozen=True)
class ArenaReport:
    """Results of a tournament: Elo per player with its interval, online Elo, win rates, and figures about the judge.

    `win_rates[a][b]` is the score of a against b; a tie counts half.
    """

    elo: Mapping[str, Estimate]
    online: Mapping[str, float]
    win_rates: Mapping[str, Mapping[str, float]]
    bias: Mapping[str, Estimate]
    consistency: Mapping[str, Estimate]
    games: int

    def as_json(self) -> dict[str, Any]:
        """Returns the content of arena_write.json. Games are stored in a separate file."""
        estimates = {name: getattr(self, name) for name in ("elo", "bias", "consistency")}
        found: dict[str, Any] = {k: {n: e.as_json() for n, e in v.items()} for k, v in estimates.items()}
        return found | {"online_elo": dict(self.online), "win_rates": self.win_rates, "games": self.games}


def pairs(models: Sequence[str], baselines: Sequence[str], *, every: bool = False) -> list[tuple[str, str]]:
    """Returns the pairs of players: each model with each baseline; with `every` or without baselines, all pairs."""
    if every or not baselines:
        return list(combinations([*models, *baselines], 2))
    return [(model, baseline) for model in models for baseline in baselines]


async def play(
    tasks: Sequence[Task],
    texts: Mapping[str, Mapping[str, str]],
    who: Sequence[tuple[str, str]],
    judge: Judge,
    *,
    repeats: int = 1,
    shown: Shown = lambda *_: None,
) -> tuple[list[Game], int]:
    """Judges every pair on every prompt that both players answered, in both orders, `repeats` times.

    Returns the games and the number of pairs left out because one order got no verdict. A single order would carry the
    judge's position bias into the result. Raises EngineError for a judge that answers nothing.
    """
    asked = [
        (task, order, sample)
        for task in tasks
        for a, b in who
        if task.id in texts[a] and task.id in texts[b]
        for sample in range(repeats)
        for order in ((a, b), (b, a))
    ]
    questions = [
        pair_question(task.prompt, texts[first][task.id], texts[second][task.id], sample=sample)
        for task, (first, second), sample in asked
    ]
    verdicts = await ask_all(judge, questions, read_winner, shown)
    games: list[Game] = []
    incomplete = 0
    for place in range(0, len(asked), 2):  # the two orders of a pair are adjacent
        both = [
            Game(task.id, *order, sample, verdict.value, verdict.judge, verdict.text)
            for (task, order, sample), verdict in zip(
                asked[place : place + 2], verdicts[place : place + 2], strict=True
            )
            if verdict is not None
        ]
        games += both if len(both) == 2 else []
        incomplete += len(both) < 2
    return games, incomplete


def report(
    games: Sequence[Game], players: Sequence[str], *, anchor: str, anchor_elo: float = 1000.0, resamples: int = 1000
) -> ArenaReport:
    """Rates the players that have games, with the anchor at `anchor_elo`. Intervals resample whole prompts."""
    met = {game.first for game in games} | {game.second for game in games}
    names = [name for name in players if name in met]
    place = {name: k for k, name in enumerate(names)}
    prompts = {prompt: k for k, prompt in enumerate(dict.fromkeys(game.prompt for game in games))}
    table = Games.of([(prompts[g.prompt], place[g.first], place[g.second], g.score) for g in games])
    at = place[anchor]
    point, drawn = bootstrap(table, len(names), at, resamples=resamples)
    between = levels(len(prompts))
    low, high = np.percentile(drawn.theta, between, axis=0)
    count = np.bincount(table.first, minlength=len(names)) + np.bincount(table.second, minlength=len(names))
    elo = {name: _elo(point.theta[0, k], low[k], high[k], int(count[k]), at=anchor_elo) for name, k in place.items()}
    online = online_elo(table, len(names), at, anchor_elo=anchor_elo)
    beta_low, beta_high = np.percentile(drawn.beta, between)
    beta = _elo(point.beta[0], beta_low, beta_high, len(games))
    first_place = estimate([g.score for g in games], [g.prompt for g in games])
    assert first_place is not None  # there are games
    return ArenaReport(
        dict(sorted(elo.items(), key=lambda item: -item[1].value)),
        {name: float(online[k]) for name, k in place.items()},
        _win_rates(games, names),
        {"first_place_share": first_place, "first_place_elo": beta},
        _consistency(games),
        len(games),
    )


@dataclass(frozen=True)
class Tournament:
    """The judged games of a run whose rated model is `player`. Ratings are relative to the player `anchor`."""

    player: str
    anchor: str
    games: Sequence[Game]


def elo_difference(mine: Tournament, theirs: Tournament, *, resamples: int = 1000) -> Estimate | None:
    """Returns the Elo of one tournament's player minus that of another's, over the prompts judged in both.

    Every resample draws the same prompts for both, so the difficulty of a prompt cancels out, as in a paired test.
    Returns None if the tournaments share no prompt or no anchor, or if one of the players or anchors has no game on the
    shared prompts. `count` is the number of prompts.
    """
    sides = (mine, theirs)
    shared = set.intersection(*({game.prompt for game in side.games} for side in sides))
    place = {prompt: number for number, prompt in enumerate(sorted(shared))}
    if not place or mine.anchor != theirs.anchor:
        return None
    strengths = []
    for side in sides:
        games = [game for game in side.games if game.prompt in place]
        names = {name: k for k, name in enumerate(dict.fromkeys(n for g in games for n in (g.first, g.second)))}
        if side.player not in names or side.anchor not in names:
            return None
        table = Games.of([(place[g.prompt], names[g.first], names[g.second], g.score) for g in games])
        point, drawn = bootstrap(table, len(names), names[side.anchor], resamples=resamples)
        strengths.append(np.concatenate([point.theta, drawn.theta])[:, names[side.player]])
    gaps = strengths[0] - strengths[1]
    low, high = np.percentile(gaps[1:], levels(len(place)))
    return _elo(gaps[0], low, high, len(place))


def _elo(value: float, low: float, high: float, count: int, *, at: float = 0.0) -> Estimate:
    return Estimate(float(at + ELO * value), float(at + ELO * low), float(at + ELO * high), count)


def _win_rates(games: Sequence[Game], names: Sequence[str]) -> dict[str, dict[str, float]]:
    scores: dict[tuple[str, str], list[float]] = {}
    for game in games:
        scores.setdefault((game.first, game.second), []).append(game.score)
        scores.setdefault((game.second, game.first), []).append(1 - game.score)
    return {
        a: {b: sum(scores[a, b]) / len(scores[a, b]) for b in names if (a, b) in scores} for a in names
    }  # fmt: skip


def _consistency(games: Sequence[Game]) -> dict[str, Estimate]:
    """Computes shares over pairs judged in both orders (same winner, place that won) and over repeated questions."""
    verdicts = {(g.prompt, g.first, g.second, g.sample): g.score for g in games}
    orders: dict[str, list[tuple[float, str]]] = {
        "same_winner_in_both_orders": [],
        "first_place_won_both": [],
        "second_place_won_both": [],
    }
    repeated: list[tuple[float, str]] = []
    for (prompt, first, second, sample), score in verdicts.items():
        other = verdicts.get((prompt, second, first, sample))
        if other is not None and first < second:
            outcomes = (score == 1 - other, score == other == 1.0, score == other == 0.0)
            for name, outcome in zip(orders, outcomes, strict=True):
                orders[name].append((float(outcome), prompt))
        before = verdicts.get((prompt, first, second, sample - 1))
        if before is not None:
            repeated.append((float(score == before), prompt))
    found = {name: estimate([v for v, _ in rows], [p for _, p in rows]) for name, rows in orders.items()}
    found["same_verdict_when_asked_again"] = estimate([v for v, _ in repeated], [p for _, p in repeated])
    return {name: value for name, value in found.items() if value is not None}
