"""Signs that a run goes wrong, each with what it means and what to do. Pure functions of the metrics and the signals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from megatron_lwz.metrics import Row
from megatron_lwz.report.axes import short
from megatron_lwz.ui.signals import Signals

WINDOW = 5
"""Steps over which a level is averaged."""


@dataclass(frozen=True)
class Alarm:
    """One sign. `serious`: the run probably wastes its time from here on."""

    title: str
    seen: str
    """The figures."""
    means: str
    advice: str
    serious: bool = False
    chart: str = ""
    """Title of the chart that shows it."""
    rollouts: str = ""
    """Query of the list that shows the rollouts concerned."""


def find_alarms(rows: Sequence[Row], signals: Signals) -> list[Alarm]:
    """Returns the alarms of a run as of its last steps, serious ones first."""
    steps = [row for row in rows if "loss" in row or "rollout/mean_length" in row]
    found = [alarm for rule in _RULES for alarm in rule(steps)] if steps else []
    found += [alarm for text_rule in _TEXT_RULES for alarm in text_rule(signals)]
    return sorted(found, key=lambda alarm: not alarm.serious)


def _engines(rows: Sequence[Row]) -> Iterator[Alarm]:
    row = rows[-1]
    engines, up = row.get("rollout/engines", 0.0), row.get("rollout/engines_up", 0.0)
    if up < engines:
        yield Alarm(
            f"{engines - up:g} of {engines:g} engines are out",
            f"After step {row['step']:g}, {up:g} of {engines:g} engines took rollouts.",
            "Rollouts wait for fewer slots, so steps take longer. Nothing is lost: their rollouts went on elsewhere.",
            "Look in the run's log for the engine's address and the reason. A restarted engine is taken up again by itself.",
            serious=up == 0,
            chart="Engines",
        )
    for key, what in (("rollout/total_failed_groups", "prompt groups"), ("rollout/total_failed_scores", "scores")):
        if (new := _increase(rows, key)) > 0:
            yield Alarm(
                f"{new:g} {what} failed in the last steps",
                f"{what.capitalize()} failed, since this process began: {row[key]:g}.",
                "The requests failed after all retries. Other prompts replaced failed groups; failed scores are masked.",
                "See the log for the class of the failures: an address, a time limit, a key, a full cache.",
                chart="Failures since the start",
            )


def _entropy(rows: Sequence[Row]) -> Iterator[Alarm]:
    ends = _ends(rows, "entropy")
    if ends and len(rows) >= 3 * WINDOW and ends[1] < max(0.35 * ends[0], 0.05):
        yield Alarm(
            "Entropy has collapsed",
            f"{short(ends[0])} nats per token in the first steps, {short(ends[1])} in the last.",
            "The policy is nearly certain of every token. It explores no more, and groups lose the variance that they learn from.",
            "Go back to an earlier checkpoint; lower optimizer.lr, raise grpo.clip_high or add grpo.kl_coefficient.",
            serious=True,
            chart="entropy",
        )


def _lengths(rows: Sequence[Row]) -> Iterator[Alarm]:
    parted = [row for row in rows[-WINDOW:] if row.get("length/parted")]
    if parted:
        row = parted[-1]
        sampled, trained = row.get("length/sampled/mean", math.nan), row.get("length/trained/mean", math.nan)
        yield Alarm(
            "Training does not see the lengths that the policy writes",
            f"Step {row['step']:g}: {short(sampled)} tokens sampled in the mean, {short(trained)} trained on.",
            "Long or short rollouts are left out more often than others, so the policy learns from a biased sample.",
            "The chart “Left out of training” names the cause. Raise rollout.max_new_tokens (or the stage's of the "
            "curriculum), or do not mask truncated rollouts.",
            chart="Length sampled and trained on",
        )
    cut = _mean(rows, "rollout/truncated")
    if cut is not None and cut > 0.25:
        yield Alarm(
            f"{cut:.0%} of the rollouts are cut off at the token limit",
            f"Mean of the last {WINDOW} steps.",
            "A text without an end gets no fair score, and the tokens behind the limit are never learned.",
            "Raise rollout.max_new_tokens (or the stage's of the curriculum) if the texts are sound; if they loop, turn on "
            "the stream guard (docs/guard.md).",
            chart="Share of rollouts",
            rollouts="end=length",
        )


def _rewards(rows: Sequence[Row]) -> Iterator[Alarm]:
    prefix = "rollout/masked_groups/"
    for key in [key for key in rows[-1] if key.startswith(prefix)]:
        masked = _mean(rows, key)
        if masked:
            name = key.removeprefix(prefix)
            yield Alarm(
                f"The reward {name} is masked",
                f"{short(masked)} groups per step had no score of it, in the mean of the last {WINDOW} steps.",
                "These groups learn from the other components alone.",
                "See the log for why it fails: an unreachable judge or reward model, answers that cannot be read.",
                serious=(_mean(rows, f"reward_masked/{name}") or 0.0) > 0.9,
                chart="Groups without a score",
            )
    alike = _mean(rows, "rollout/zero_variance_groups")
    if alike is not None and alike > 0.5:
        yield Alarm(
            f"{alike:.0%} of the groups have no variance",
            f"Mean of the last {WINDOW} steps: all scores of such a group are equal.",
            "They give no gradient, so most of the sampling is wasted.",
            "Take harder or easier prompts, a finer reward, or grpo.zero_variance: refill.",
            chart="Groups without variance",
        )
    yield from _fallen_format(rows)


def _fallen_format(rows: Sequence[Row]) -> Iterator[Alarm]:
    last = _mean(rows, "format_valid")
    values = [row["format_valid"] for row in rows if math.isfinite(row.get("format_valid", math.nan))]
    if last is None or len(values) < 2 * WINDOW:
        return
    best = max(sum(values[at : at + WINDOW]) / WINDOW for at in range(len(values) - WINDOW + 1))
    if last < best - 0.2:
        yield Alarm(
            "The format breaks down",
            f"{last:.0%} well-formed in the last steps, {best:.0%} at best.",
            "The policy has begun to write outside the think and answer tags, often together with loops or cut texts.",
            "Read some faulty rollouts; check the weight of the format reward, and the learning rate.",
            serious=True,
            chart="Share of rollouts",
            rollouts="form=faulty",
        )


def _numbers(rows: Sequence[Row]) -> Iterator[Alarm]:
    clipped, apart = _mean(rows, "mismatch/clipped"), _mean(rows, "mismatch/kl")
    if (clipped or 0.0) > 0.05 or (apart or 0.0) > 0.01:
        yield Alarm(
            "Engine and trainer disagree about the policy",
            f"KL {short(apart or 0.0)}, {clipped or 0.0:.1%} of the tokens beyond the correction's bound.",
            "The engine samples from other probabilities than the trainer computes: other precision, other weights, or stale ones.",
            "Compare the weight versions (weight_sync.verify_interval: 1), use the same precision, lower rollout.max_staleness.",
            serious=(apart or 0.0) > 0.1,
            chart="Engine against trainer",
        )
    norms = [row["grad_norm"] for row in rows if math.isfinite(row.get("grad_norm", math.nan))]
    if len(norms) >= 3 * WINDOW:
        usual = sorted(norms)[len(norms) // 2]
        if usual > 0 and max(norms[-WINDOW:]) > 10 * usual:
            yield Alarm(
                "The gradient norm jumps",
                f"{short(max(norms[-WINDOW:]))} in the last steps, {short(usual)} in the median.",
                "A few texts dominate the update, or the policy becomes unstable.",
                "Look at the longest rollouts of that step; lower optimizer.lr, or set training.grad_norm_spike.",
                chart="gradient norm",
            )


def _repetition(signals: Signals) -> Iterator[Alarm]:
    first, last = signals.repetition
    if first is not None and last is not None and last > 0.15 and last > 1.5 * first:
        yield Alarm(
            "The texts repeat themselves more and more",
            f"{first:.0%} of the 4-grams of an answer had occurred before in the first groups, {last:.0%} in the last.",
            "Repetition is the cheapest way to a length. If a reward pays for it, it will grow.",
            "Read the worst ones with the band “repetition”; add reward.overlap or the stream guard's repetition rule.",
            serious=last > 0.4,
            rollouts="sort=repetition",
        )
    for (component, feature), value in signals.follows.items():
        bound = 0.3 if feature == "repetition" else 0.8
        if component != "length" and value > bound:
            yield Alarm(
                f"The reward {component} follows {feature}",
                f"Rank correlation {value:.2f} inside the groups of steps {signals.steps[0]} to {signals.steps[1]}.",
                "Rollouts with more of it get the higher score, whatever else they say: a sign of reward hacking.",
                "Read best and worst siblings side by side. If the better text loses, change the judge or its weight.",
                serious=feature == "repetition" and value > 0.6,
                rollouts=f"sort=best&score={component}",
            )


def _diversity(signals: Signals) -> Iterator[Alarm]:
    first, last = signals.likeness
    if first is not None and last is not None and (last > 0.6 or (last > 0.25 and last > 1.5 * first)):
        yield Alarm(
            "Siblings become alike" if last > first else "Siblings are alike",
            f"Rollouts of one prompt shared {first:.0%} of their 4-grams in the first groups, {last:.0%} in the last.",
            "The policy writes one text per prompt. Comparing siblings then teaches nothing.",
            "See entropy; raise the temperature or grpo.clip_high, use more prompts, stop earlier.",
            serious=last > 0.6,
            chart="Sameness of siblings",
            rollouts="sort=alike",
        )


_RULES: tuple[Callable[[Sequence[Row]], Iterator[Alarm]], ...] = (_engines, _entropy, _lengths, _rewards, _numbers)
_TEXT_RULES: tuple[Callable[[Signals], Iterator[Alarm]], ...] = (_repetition, _diversity)


def _finite(rows: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in rows if key in row and math.isfinite(row[key])]


def _mean(rows: Sequence[Row], key: str) -> float | None:
    """Returns the mean of the last steps that have the metric."""
    values = _finite(rows[-WINDOW:], key)
    return sum(values) / len(values) if values else None


def _ends(rows: Sequence[Row], key: str) -> tuple[float, float] | None:
    values = _finite(rows, key)
    sides = values[:WINDOW], values[-WINDOW:]
    return (sum(sides[0]) / len(sides[0]), sum(sides[1]) / len(sides[1])) if values else None


def _increase(rows: Sequence[Row], key: str) -> float:
    """Returns how much a counter grew in the last steps; it begins at 0 again with every start of the run."""
    values = _finite(rows[-WINDOW - 1 :], key)
    return sum(max(0.0, later - before) for before, later in pairwise(values))
