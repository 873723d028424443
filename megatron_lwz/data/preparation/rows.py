"""Turns requests into prompt rows: filters them, settles their length ranges, and counts why requests are dropped."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_lwz.data.preparation.copies import CopyFinder
from megatron_lwz.data.preparation.language import Language, tell_language
from megatron_lwz.data.preparation.ranges import RangeRules, Settled, TokenBudget
from megatron_lwz.data.preparation.sources import NO_REQUEST, Source
from megatron_lwz.data.text.length_request import LengthRequest, Unit, read_length
from megatron_lwz.errors import DataError

RULES_VERSION = "lwz-length-rules-3"
"""Version of `read_length` and `RangeRules`, written to every row."""

_CJK = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True)
class Candidate:
    """A request that passed the filters. `explicit` is the range that its text states, in a unit the reward counts."""

    id: str
    source: Source
    language: Language
    explicit: LengthRequest | None

    @property
    def needs_judge(self) -> bool:
        """Whether a judge must decide the range. A range that came with the data set needs no judge."""
        return self.source.asked is None


@dataclass(frozen=True)
class JudgedLength:
    """A judge's verdict: whether a request needs a long, careful reply, and how long. `judge`: model/prompt version."""

    keep: bool
    lower: int
    upper: int
    judge: str = ""


@dataclass(frozen=True)
class Filters:
    """Conditions for a request to be a candidate.

    The shortest request is in characters without white space, the longest in estimated tokens.
    """

    language: Literal["en", "zh", "both"] = "both"
    keep_flagged: bool = False
    shortest_request: int = 10
    longest_request_tokens: int = 2_048
    copy_threshold: float = 0.8


@dataclass(frozen=True)
class Settings:
    """Settings for settling ranges. Rows whose upper bound is below `shortest_answer` are dropped as too short."""

    rules: RangeRules = field(default_factory=RangeRules)
    budget: TokenBudget = field(default_factory=TokenBudget)
    shortest_answer: int = 500
    rules_only: bool = False


class Tally(Counter[str]):
    """Counts of rows: read, dropped by reason ("dropped: …"), noted ("note: …") and kept.

    `first_fault` is the error of the first row that could not be read.
    """

    first_fault: DataError | None = None

    def refuse(self, fault: DataError) -> None:
        """Counts a row that cannot be read, or has no request, under the kind of its fault."""
        # Names and numbers in a message differ from row to row; what stands in brackets or after a colon is detail.
        kind = re.sub(r"'[^']*'|\b(?<!-)\d+", "…", fault.advice).split(" (")[0].split(": ")[0]
        self.drop(kind)
        if kind != NO_REQUEST:
            self.first_fault = self.first_fault or fault

    def drop(self, reason: str) -> None:
        """Counts a dropped row under its reason."""
        self[f"dropped: {reason}"] += 1

    def note(self, text: str) -> None:
        """Counts a note about a row that is kept."""
        self[f"note: {text}"] += 1


def find_candidates(sources: Iterable[Source | DataError], filters: Filters, tally: Tally) -> Iterator[Candidate]:
    """Yields the requests that pass all filters. The cheap filters run first, the search for copies last."""
    copies = CopyFinder(threshold=filters.copy_threshold)
    for source in sources:
        tally["read"] += 1
        if isinstance(source, DataError):
            tally.refuse(source)
            continue
        if source.after_system:
            tally.note("a system text before the request, which is not part of it")
        reason, language = _unfit(source, filters)
        if reason is None and (copy := copies.add(source.text)):
            reason = "exact copy of an earlier request" if copy == "exact" else "near copy of an earlier request"
        if reason is not None or language is None:
            tally.drop(reason or "another language")
            continue
        reading = read_length(source.text)
        explicit = reading.request
        if reading.unclear:
            tally.note("lengths in the request that disagree or are unclear: no range by rule")
        if explicit is not None and language == "en" and explicit.unit == "characters":
            tally.note("a length in letters, which the reward does not count")
            explicit = None
        yield Candidate(_identity(source), source, language, explicit)


def settle(
    candidate: Candidate, judged: JudgedLength | None, settings: Settings, tally: Tally, *, date: str
) -> dict[str, Any] | None:
    """Returns the prompt row of a candidate, or None if it is dropped; the reason is counted in `tally`.

    `judged` is None if the judge was not asked or gave no verdict.
    """
    source = candidate.source
    origin, settled, unit = _range(candidate, judged, settings.rules)
    reason = _unusable(candidate, judged, settings) or _unfit_range(origin, settled, unit, settings)
    if reason is not None or settled is None or settled.range is None:
        tally.drop(reason or "no range")
        return None
    lower, upper = settled.range.lower, settled.range.upper
    if settled.rounded:
        tally.note(f"{origin} range rounded")
    if settled.wide:
        tally.note(f"{origin} range wider than {settings.rules.widest}")
    tally["kept"] += 1
    tally[f"kept: {candidate.language}, range from the {origin}"] += 1
    return {
        "id": candidate.id,
        "prompt": source.text,
        "length": {"lower": lower, "upper": upper},
        "language": candidate.language,
        "source": {"file": source.file, "id": source.id},
        "provenance": {
            "range": origin,
            "rules": RULES_VERSION,
            "judge": judged.judge if judged is not None else None,
            "date": date,
        },
    }


def _unusable(candidate: Candidate, judged: JudgedLength | None, settings: Settings) -> str | None:
    if settings.rules_only or not candidate.needs_judge:
        return None
    if judged is None:
        return "the judge gave no verdict"
    return None if judged.keep else "the judge says it needs no long reply"


def _unfit_range(origin: str, settled: Settled | None, unit: Unit, settings: Settings) -> str | None:
    if settled is None:
        return "no explicit length"
    if settled.range is None:
        return f"{origin}: {settled.trouble}"
    if settled.range.upper < settings.shortest_answer:
        return f"answer shorter than {settings.shortest_answer} (--shortest-answer)"
    if not settings.budget.fits(settled.range.lower, unit):
        return "longer than the token budget holds beside the thinking"
    return None


def _range(candidate: Candidate, judged: JudgedLength | None, rules: RangeRules) -> tuple[str, Settled | None, Unit]:
    """Returns (origin, range, unit): the data set's range, else the request's own numbers, else the judge's range."""
    unit: Unit = "characters" if candidate.language == "zh" else "words"
    if candidate.source.asked is not None:
        return "data set", rules.settle(*candidate.source.asked), unit
    if candidate.explicit is not None:
        return "rule", rules.settle_request(candidate.explicit), candidate.explicit.unit
    return "judge", rules.settle(judged.lower, judged.upper) if judged is not None else None, unit


def _unfit(source: Source, filters: Filters) -> tuple[str | None, Language | None]:
    size = sum(map(len, source.text.split()))
    if size < filters.shortest_request:
        return f"request shorter than {filters.shortest_request} characters", None
    if source.flagged and not filters.keep_flagged:
        return "flagged as harmful by the data set", None
    if estimate_tokens(source.text) > filters.longest_request_tokens:
        return f"request longer than about {filters.longest_request_tokens} tokens", None
    language = tell_language(source.text, source.tag)
    if language is None or filters.language not in (language, "both"):
        return "another language", None
    return None, language


def estimate_tokens(text: str) -> int:
    """Estimates the number of tokens in Qwen2.5's vocabulary: 0.8 per CJK character, one per 4 other characters."""
    cjk = len(_CJK.findall(text))
    return round(0.8 * cjk + (len(text) - cjk) / 4)


def _identity(source: Source) -> str:
    """Returns an id that is the same for the same request in every run."""
    digest = hashlib.sha256(source.text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    stem = re.sub(r"[^\w-]+", "-", Path(source.file).name.split(".")[0])
    return f"{stem}-{digest}"
