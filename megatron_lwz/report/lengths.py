"""Lengths that the policy wrote against lengths that training saw, by the weights that started them.

Also shows the rollouts that are still waiting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np

from megatron_lwz.config import Config
from megatron_lwz.metrics import Row
from megatron_lwz.report.axes import short
from megatron_lwz.report.charts import Band, Points, bands, curves, histogram
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.rollout.length_book import ADVICE
from megatron_lwz.rollout.lengths import TRAINED, GroupLengths, Integers, Sample, main_cause, sample
from megatron_lwz.types import FinishReason

_QUANTILES = (0.1, 0.5, 0.9)
_VERSION = "updates of the weights that began them"
_NAMES = {
    "truncated": "cut and masked",
    "zero variance": "group scores alike",
    "no score": "no score",
    "failed": "group failed",
    "prompts changed": "prompts changed",
    "group size changed": "group size changed",
}
"""Labels for the reasons why training did not see a rollout."""


@dataclass(frozen=True)
class _Batch:
    """The rollouts that one trainer step admitted, once every group is trained on or dropped."""

    version: int
    sample: Sample
    truncated: float
    """Share that reached the token limit."""
    stopped: float
    """Share that the stream guard stopped."""


def panel(journal: Path, rows: Sequence[Row], config: Config) -> str:
    """Returns warning and charts of the section. Empty when no batch is complete.

    Raises DataError when the journal cannot be read.
    """
    with JournalReader(journal) as reader, reader.still():
        groups = sorted(reader.lengths(), key=lambda group: group.admitted)
    batches = [_batch(*found) for found in _complete(groups)]
    if not batches:
        return ""
    charts = [
        bands(
            "Length by weights",
            {"sampled": _spread(batches, trained=False), "trained on": _spread(batches, trained=True)},
            unit="tokens, median and the middle 80 %",
            x_label=_VERSION,
        ),
        _newest(groups, batches[-config.rollout.lengths.window :]),
        curves("Share of what was sampled", _shares(batches), share=True, x_label=_VERSION),
        curves("Gap of the two distributions", _gaps(rows, config), unit="Kolmogorov–Smirnov", x_label=_VERSION),
        curves("Waiting: written so far", _waiting(rows), unit="tokens, after each step"),
    ]
    kept = "".join(chart for chart in charts if chart)
    return _alarm(rows, batches) + f'<div class="charts">{kept}</div>'


def _complete(groups: Sequence[GroupLengths]) -> list[tuple[int, list[GroupLengths]]]:
    """Returns (step that admitted them, groups) of complete batches.

    In a complete batch every group is trained on or dropped, and at least one rollout was written.
    """
    found = [(step, list(batch)) for step, batch in groupby(groups, key=lambda group: group.admitted)]
    return [(s, b) for s, b in found if all(g.accounted for g in b) and any(g.rollouts for g in b)]


def _batch(step: int, groups: Sequence[GroupLengths]) -> _Batch:
    ends = [rollout.end for group in groups for rollout in group.rollouts]
    shares = [ends.count(reason.value) / len(ends) for reason in (FinishReason.LENGTH, FinishReason.GUARD)]
    return _Batch(step - 1, sample(groups), *shares)


def _spread(batches: Sequence[_Batch], *, trained: bool) -> list[Band]:
    found = [(batch.version, batch.sample.trained if trained else batch.sample.tokens) for batch in batches]
    return [_band(version, tokens) for version, tokens in found if len(tokens)]


def _band(version: int, tokens: Integers) -> Band:
    low, middle, high = np.quantile(tokens, _QUANTILES, method="inverted_cdf").tolist()
    return version, low, middle, high


def _newest(groups: Sequence[GroupLengths], batches: Sequence[_Batch]) -> str:
    """Returns the length histogram of the newest complete batches, and of the unfinished rollouts so far."""
    sampled = np.concatenate([batch.sample.tokens for batch in batches]).tolist()
    trained = np.concatenate([batch.sample.trained for batch in batches]).tolist()
    waiting = [float(r.tokens) for g in groups if not g.accounted for r in g.rollouts if r.end is None]
    kinds = {"sampled": sampled, "trained on": trained, "waiting, so far": waiting}
    first, last = batches[0].version, batches[-1].version
    title = f"Lengths of weights {first} to {last}" if first < last else f"Lengths of weights {last}"
    return histogram(title, kinds, x_label="tokens")


def _shares(batches: Sequence[_Batch]) -> Mapping[str, Points]:
    """Returns the shares of truncated, stopped and untrained rollouts, the last by reason.

    Series of zeros are left out.
    """
    series: dict[str, Points] = {
        "at the token limit": [(batch.version, batch.truncated) for batch in batches],
        "stopped": [(batch.version, batch.stopped) for batch in batches],
    }
    for fate in (*ADVICE, *sorted({fate for batch in batches for fate in batch.sample.fates} - {*ADVICE, TRAINED})):
        points = [(b.version, b.sample.fates.count(fate) / len(b.sample.fates)) for b in batches]
        series["out: " + _NAMES.get(fate, fate)] = points
    return {name: points for name, points in series.items() if any(share for _, share in points)}


def _gaps(rows: Sequence[Row], config: Config) -> Mapping[str, Points]:
    """Returns the gaps between the two length distributions. Empty where no step reports them."""
    section = config.rollout.lengths
    found = [row for row in rows if "length/gap" in row]
    series = {
        "newest batch": [(row["length/version"], row["length/gap"]) for row in found],
        f"last {section.window} batches": [(row["length/version"], row["length/gap_window"]) for row in found],
        "tolerated": [(row["length/version"], section.gap) for row in found],
    }
    return series if found else {}


def _waiting(rows: Sequence[Row]) -> Mapping[str, Points]:
    """Returns the lengths of waiting rollouts. Empty where none ever waits after a step, as in a synchronous run."""
    series = {
        name: [(row["step"], row[key]) for row in rows if key in row]
        for name, key in (("longest", "length/waiting/max"), ("mean", "length/waiting/mean"))
    }
    return series if any(tokens for _, tokens in series["longest"]) else {}


def _alarm(rows: Sequence[Row], batches: Sequence[_Batch]) -> str:
    """Returns a warning when training did not see the lengths that were sampled; it describes the newest such step."""
    parted = [row for row in rows if row.get("length/parted")]
    if not parted:
        return ""
    last = parted[-1]
    compared = sum("length/parted" in row for row in rows)
    text = (
        f"In {len(parted)} of {compared} steps training did not see the lengths that the policy wrote, beyond chance; "
        f"last at step {last['step']:g}: {short(last['length/sampled/mean'])} tokens were sampled in the mean, "
        f"{short(last.get('length/trained/mean', 0.0))} trained on."
    )
    batch = next((batch for batch in batches if batch.version == last["length/version"]), None)
    cause = main_cause(batch.sample) if batch else None
    if cause is not None:
        text += f" Mostly “{cause}”: {ADVICE.get(cause, 'see the log for what dropped them')}."
    return f'<p class="alarm">{escape(text)}</p>'
