"""The content of metrics.jsonl as HTML: headline tiles, tables before → after, and curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from megatron_lwz.evaluation import longbench_write, measure
from megatron_lwz.metrics import Row, summarize
from megatron_lwz.report.axes import short
from megatron_lwz.report.charts import Points, curves
from megatron_lwz.report.labels import LABELS

_TABLE_LABELS = {
    "rollout/mean_length": "length, tokens",
    "rollout/mean_length_untruncated": "length without the truncated, tokens",
    "rollout/think_length_tokens": "thinking, tokens",
    "rollout/mean_length_units": "answer, unit of the length reward",
    "rollout/think_length": "thinking, unit of the length reward",
}
_SHARES = ("format_valid", "length_in_range", "near_duplicates", "copied", "rollout/truncated")
_TOKENS = ("rollout/mean_length", "rollout/mean_length_untruncated", "rollout/think_length_tokens")
_UNITS = ("rollout/mean_length_units", "rollout/think_length")
_HEALTH = ("loss", "grad_norm", "entropy", "kl", "tokens_per_second", "lr")
_TILES = ("format_valid", "length_in_range", "reward/length", "reward/format", "loss", "tokens_per_second")
_ORDER = (*_SHARES, *_TOKENS, *_UNITS, *_HEALTH)
_CLIPS = ("clip_fraction_low", "clip_fraction_high")
_EVALUATION = "eval/"
_TEXT, _QUALITY = "text/", "quality/"
"""Prefixes after `eval/`: properties of the texts measured without a judge, and a judge's ratings."""
_OWN = ("eval/seconds", "eval/steps_behind")
"""Metrics of the evaluation itself."""
_REWARD = "reward/"
_SECONDS = "seconds/"
_GRADIENT, _GRADIENT_LENGTH, _MASKED = "gradient/", "gradient_length/", "rollout/masked_groups/"
_JUDGE = "judge/total_"


def tiles(rows: Sequence[Row]) -> str:
    """Returns tiles with the main figures, first three steps → last three."""
    summary = summarize(rows)
    first, last = summary["first"], summary["last"]
    shown = [key for key in _TILES if key in first and key in last][:4]
    cells = [
        f'<div class="tile">{escape(label(key))}<b><span class="from">{short(first[key])} →</span> {short(last[key])}</b></div>'
        for key in shown
    ]
    return f'<div class="tiles">{"".join(cells)}</div>' if cells else ""


def reward_charts(rows: Sequence[Row]) -> str:
    """Returns the charts of rewards, shares and lengths."""
    rewards = _series(rows, _keys(rows, _REWARD), lambda key: key.removeprefix(_REWARD))
    charts = [
        curves("Reward by component", rewards),
        curves("Share of rollouts", _series(rows, _SHARES, label), share=True),
        curves("Sameness of siblings", _series(rows, ["rollout/sameness"], label), share=True),
        curves("Length", _series(rows, _TOKENS, label), unit="tokens"),
        curves("Length", _series(rows, _UNITS, label), unit="unit of the length reward"),
        curves("Stage of the curriculum", _series(rows, ["curriculum/stage"], label)),
        curves("Success in the curriculum", _series(rows, ["curriculum/success", "curriculum/gate"], label)),
    ]
    return _grid(charts)


def composition_charts(rows: Sequence[Row]) -> str:
    """Returns charts of what drives the gradient.

    They show its shares by component, by length and by both, the groups without a score, and rollouts that break a
    rule.
    """
    shares = [key for key in _keys(rows, _GRADIENT) if key.count("/") == 1]
    lengths = _keys(rows, _GRADIENT_LENGTH)
    masked = [key for key in _keys(rows, _MASKED) if any(row.get(key) for row in rows)]
    charts = [
        curves("Gradient by component", _series(rows, shares, lambda key: key.removeprefix(_GRADIENT)), share=True),
        curves("Gradient by length", _series(rows, lengths, _last), unit="tokens of the response", share=True),
        *(
            curves(
                f"Gradient of {key.removeprefix(_GRADIENT)}",
                _series(rows, _keys(rows, key + "/"), _last),
                unit="tokens",
            )
            for key in shares
        ),
        curves("Groups without a score", _series(rows, masked, _last)),
        curves("Rollouts that break a rule", _series(rows, ["rollout/violators"], label), share=True),
    ]
    return _grid(charts, small=True)


def judge_table(rows: Sequence[Row]) -> str:
    """Returns a table of the judge's counters that are not 0, as of the last step.

    The counters belong to one process.
    """
    last = next((row for row in reversed(rows) if _JUDGE + "asked" in row), {})
    counts = [(key.removeprefix(_JUDGE), last[key]) for key in last if key.startswith(_JUDGE) and last[key]]
    body = "".join(f"<tr><td>{escape(name)}</td><td>{count:g}</td></tr>" for name, count in counts)
    return f'<div class="wide" tabindex="0"><table><tbody>{body}</tbody></table></div>' if body else ""


def health_charts(rows: Sequence[Row]) -> str:
    """Returns the charts of the training's health: loss, gradient, entropy, KL, engine against trainer, speed."""
    names = [*_HEALTH, *_keys(rows, "mismatch/")]
    charts = [curves(label(key), _series(rows, [key], label)) for key in names]
    seconds = _series(rows, _keys(rows, _SECONDS), lambda key: key.removeprefix(_SECONDS))
    for title, prefix in (("Tokens per second and GPU", "tokens_per_second_per_gpu/"), ("MFU", "mfu/")):
        charts.append(curves(title, _series(rows, _keys(rows, prefix), _last)))
    charts += [curves("Tokens clipped", _series(rows, _CLIPS, label)), curves("Seconds per step", seconds)]
    return _grid(charts, small=True)


def evaluations(rows: Sequence[Row]) -> str:
    """Returns the results on held-out prompts: the table of first and last evaluation, and the curves."""
    return _evaluation_table(rows) + _evaluation_charts(rows)


def _evaluation_charts(rows: Sequence[Row]) -> str:
    """Returns curves of the held-out metrics.

    Empty with fewer than three evaluations, because the table shows both ends.
    """
    keys = [key for key in _keys(rows, _EVALUATION) if key not in _OWN]
    found = _series(rows, [*keys, *_OWN], lambda key: key)
    if max((len(points) for points in found.values()), default=0) < 3:
        return ""
    return _grid([curves(label(key), {label(key): points}) for key, points in found.items()], small=True)


def _evaluation_table(rows: Sequence[Row]) -> str:
    """Returns the table of first and last evaluation on held-out prompts. Empty when the run made fewer than two."""
    wanted = [_EVALUATION + key for key in (*_SHARES, *_TOKENS, *_UNITS)]
    rewards = _keys(rows, _EVALUATION + _REWARD)
    more = [key for prefix in (_QUALITY, _TEXT) for key in _keys(rows, _EVALUATION + prefix)]
    found = _series(rows, [*rewards, *wanted, *more], lambda key: key)
    ends = {key: (points[0], points[-1]) for key, points in found.items() if len(points) > 1}
    if not ends:
        return ""
    before, after = next(iter(ends.values()))
    lines = [(_TABLE_LABELS.get(key.removeprefix(_EVALUATION), label(key)), a[1], b[1]) for key, (a, b) in ends.items()]
    return _table((f"step {before[0]:g}", f"step {after[0]:g}"), lines)


def training_table(rows: Sequence[Row]) -> str:
    """Returns every metric of the training steps: mean of the first three steps against the last three."""
    summary = summarize(rows)
    first, last = summary["first"], summary["last"]
    keys = [key for key in first if key in last and not key.startswith(_EVALUATION)]
    keys.sort(key=lambda key: (_ORDER.index(key) if key in _ORDER else len(_ORDER), key))
    return _table(("first steps", "last steps"), [(key, first[key], last[key]) for key in keys])


def is_seconds(key: str) -> bool:
    """Whether the metric is a part of a step's wall-clock time (`seconds/<part>`), or all of it (`seconds`)."""
    return key == "seconds" or key.startswith(_SECONDS)


def label(key: str) -> str:
    """Returns a metric's display name without `eval/`. Unknown names stay as they are."""
    name = key.removeprefix(_EVALUATION)
    if name.startswith(_REWARD):
        return f"{name.removeprefix(_REWARD)} reward"
    if name.startswith(_TEXT):
        return measure.LABELS.get(name.removeprefix(_TEXT), name)
    if name.startswith(_QUALITY):
        return longbench_write.LABELS.get(name.removeprefix(_QUALITY), LABELS.get(name, name))
    return LABELS.get(name, name)


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _table(heads: tuple[str, str], lines: Sequence[tuple[str, float, float]]) -> str:
    body = "".join(
        f"<tr><td>{escape(name)}</td><td>{short(before)}</td><td>{short(after)}</td>"
        f"<td>{'+' if after > before else ''}{short(after - before)}</td></tr>"
        for name, before, after in lines
    )
    head = f"<tr><th></th><th>{heads[0]}</th><th>{heads[1]}</th><th>change</th></tr>"
    return f'<div class="wide" tabindex="0"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _series(rows: Sequence[Row], keys: Sequence[str], name: Callable[[str], str]) -> Mapping[str, Points]:
    found = {name(key): [(row["step"], row[key]) for row in rows if key in row] for key in keys}
    finite = {key: [point for point in points if math.isfinite(point[1])] for key, points in found.items()}
    return {key: points for key, points in finite.items() if points}


def _keys(rows: Sequence[Row], prefix: str) -> list[str]:
    """Returns the metric names with this prefix, in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row if key.startswith(prefix)))


def _grid(charts: Sequence[str], *, small: bool = False) -> str:
    kept = [chart for chart in charts if chart]
    return f'<div class="charts{" small" if small else ""}">{"".join(kept)}</div>' if kept else ""
