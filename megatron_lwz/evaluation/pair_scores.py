"""Scores human choices with the reward components of a config, many pairs at once, and goes on after a kill.

A judge's replies are in its cache. The scores of components that ask another server, and of the user's functions, are
kept in a file of their own; rules are computed again.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_lwz.config.base import ComponentSection
from megatron_lwz.config.sections import FunctionReward, OverlapReward, RewardSection, WritingReward
from megatron_lwz.errors import EngineError
from megatron_lwz.evaluation.agreement import Choice
from megatron_lwz.evaluation.asking import Shown, at_once, refuse_silence
from megatron_lwz.evaluation.human_pairs import HumanPair
from megatron_lwz.rewards.composite import component_sections, measured
from megatron_lwz.rewards.judge_base import JudgedComponent
from megatron_lwz.rewards.judge_cache import Reply, ReplyCache, cache_key
from megatron_lwz.rewards.writing import WritingComponent
from megatron_lwz.types import ComponentScore, RewardFn
from megatron_lwz.user_functions import load_function

PairScores = tuple[ComponentScore, ComponentScore]
"""Scores of a pair's two rollouts, in their order."""
_FIRST = 16
"""Number of texts that a reward model may fail on before the first success."""
_REASONS = {"no-verdict": "no verdict", "no-reference": "no reference", "function": "the function gave no number"}


class KeptScores:
    """Scores of components that are dear, in a file. A pair is kept once both its scores are valid.

    A component's scores count for its settings only. For a function they count for the source file that holds it.
    """

    def __init__(self, path: Path, section: RewardSection) -> None:
        """Raises DataError for a file that cannot be used, ConfigError for a function that cannot be imported."""
        self._cache = ReplyCache(path)
        self._settings = {
            name: digest
            for name, entry in component_sections(section).items()
            if (digest := _settings_of(entry)) is not None
        }

    def get(self, component: str, pair: HumanPair) -> PairScores | None:
        """Returns the scores that are kept, None without any."""
        if component not in self._settings:
            return None
        found = self._cache.get(cache_key(self._settings[component], pair.key))
        if found is None:
            return None
        first, second = (
            ComponentScore(value, True, details, version) for value, details, version in json.loads(found.text)
        )
        return first, second

    def put(self, component: str, pair: HumanPair, scores: PairScores) -> None:
        """Keeps the scores of a dear component, if both are valid."""
        if component in self._settings and all(score.valid for score in scores):
            text = json.dumps([(score.value, dict(score.details), score.version) for score in scores])
            self._cache.put(cache_key(self._settings[component], pair.key), component, Reply(text, component))

    def close(self) -> None:
        """Closes the file."""
        self._cache.close()


def _settings_of(entry: ComponentSection) -> str | None:
    """Returns a digest of the settings that determine a dear component's scores; None for other components."""
    said = measured(entry)
    if isinstance(entry, FunctionReward):
        return cache_key("function", said, _source(load_function("reward.functions", entry.path)))
    if isinstance(entry, WritingReward):
        server = _weights(Path(entry.hf)) if entry.hf is not None and entry.url is None else said["url"]
        read = ("api", "model", "template", "thinking", "end", "transform")
        return cache_key("writing", server, {name: said[name] for name in read})
    return cache_key("overlap", said) if isinstance(entry, OverlapReward) else None


def _source(function: Callable[..., Any]) -> str:
    """Returns a digest of the source file that holds a function, "" for one without."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    except (TypeError, OSError):  # an object that can be called, or a module that has no file
        return ""


def _weights(folder: Path) -> list[tuple[str, int, int]]:
    """Returns name, size and time of the weight files: another training into the same folder is another model."""
    files = sorted(folder.resolve().glob("*.safetensors"))
    return [(str(file), (found := file.stat()).st_size, found.st_mtime_ns) for file in files]


async def score_pairs(
    pairs: Sequence[HumanPair],
    rewards: Sequence[RewardFn],
    kept: KeptScores,
    *,
    most: int,
    shown: Shown = lambda *_: None,
) -> list[dict[str, PairScores]]:
    """Returns, for every pair, component → scores, `most` pairs at once. Each pair is a group of two, scored as in training.

    Raises EngineError when a judge or a reward model answers none of the first questions, and ConfigError when a prompt
    does not fit the settings.
    """
    found: list[dict[str, PairScores]] = [{} for _ in pairs]
    patience = min(most, len(pairs))

    async def score(place: int) -> None:
        pair = pairs[place]
        columns = await asyncio.gather(*(_column(reward, pair, kept) for reward in rewards))
        found[place] = dict(zip((reward.name for reward in rewards), columns, strict=True))

    await at_once(score, len(pairs), patience, shown, lambda _done: _refuse_silence(rewards, patience))
    return found


async def _column(reward: RewardFn, pair: HumanPair, kept: KeptScores) -> PairScores:
    known = kept.get(reward.name, pair)
    if known is not None:
        return known
    first, second = await reward.score(pair.prompt, pair.rollouts)
    kept.put(reward.name, pair, (first, second))
    return first, second


def _refuse_silence(rewards: Sequence[RewardFn], patience: int) -> None:
    """Raises EngineError when a server has answered none of the first questions: then its address or name is wrong."""
    for reward in rewards:
        if isinstance(reward, JudgedComponent):
            refuse_silence(reward.judge, patience)
        elif isinstance(reward, WritingComponent):
            said = reward.counters
            failed = {name: count for name, count in said.items() if name.startswith("masked/") and count >= _FIRST}
            if failed and not said["scored"] and said["requests"]:
                reasons = ", ".join(f"{count} {name.removeprefix('masked/')}" for name, count in sorted(failed.items()))
                raise EngineError(reward.address, f"the reward model scored none of the first texts ({reasons})")


def choices_of(
    pairs: Sequence[HumanPair], scored: Sequence[Mapping[str, PairScores]]
) -> tuple[list[Choice], dict[str, Counter[str]]]:
    """Returns the choices with their scores, preferred text first, and component → pairs without a score by reason."""
    masked: dict[str, Counter[str]] = {}
    choices = []
    for pair, columns in zip(pairs, scored, strict=True):
        scores: dict[str, tuple[float, float] | None] = {}
        orders: dict[str, tuple[float, float]] = {}
        for name, both in columns.items():
            reasons = masked.setdefault(name, Counter())
            if all(score.valid for score in both):
                scores[name] = (both[pair.better].value, both[1 - pair.better].value)
            else:
                scores[name] = None
                reasons[_reason(both)] += 1
            if (compared := _orders(both)) is not None:
                orders[name] = compared
        lengths = [max(1, pair.lengths[place]) for place in (pair.better, 1 - pair.better)]
        choices.append(Choice(pair.id, pair.document, lengths[0] / lengths[1], pair.categories, scores, orders))
    return choices, masked


def _reason(both: PairScores) -> str:
    versions = [score.version for score in both if not score.valid]
    return next((_REASONS[version] for version in versions if version in _REASONS), "no score")


def _orders(both: PairScores) -> tuple[float, float] | None:
    """Returns (comparisons whose two orders agree, comparisons) of a component that compares texts."""
    asked = [score.details for score in both if score.version != "rule-1" and "agreed" in score.details]
    count = sum(details["pairs"] for details in asked)
    return (sum(details["agreed"] for details in asked), count) if count else None
