"""Accuracy by kind, and what length alone would reach."""

from __future__ import annotations

import pytest

from megatron_lwz.evaluation.preferences import ScoredPair, accuracies, length_baseline, summarize_pairs


def pair(number: int, difference: float, kind: str = "a", lengths: tuple[int, int] = (10, 10)) -> ScoredPair:
    return ScoredPair(f"p{number}", kind, "s", f"d{number}", "en", difference, 0.0, *lengths, *lengths)


def test_accuracy_counts_ties_half_and_is_told_by_kind() -> None:
    pairs = [pair(0, 1.0), pair(1, -1.0), pair(2, 0.0, "b"), pair(3, 2.0, "b")]
    found = accuracies(pairs, lambda one: one.kind)
    assert {name: share.value for name, share in found.items()} == {"a": 0.5, "b": 0.75}
    summary = summarize_pairs(pairs)
    assert summary["accuracy"]["value"] == 0.625 and summary["pairs"] == 4 and set(summary["by_kind"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([(10, 5)] * 4, 1.0), ([(5, 10)] * 4, 1.0), ([(10, 10)] * 4, 0.5), ([(10, 5), (5, 10)] * 2, 0.5)],
)
def test_the_length_baseline_takes_the_better_direction(lengths: list[tuple[int, int]], expected: float) -> None:
    assert length_baseline([pair(n, 1.0, lengths=both) for n, both in enumerate(lengths)]) == expected


def test_no_pairs_are_no_error() -> None:
    assert summarize_pairs([])["accuracy"]["count"] == 0
