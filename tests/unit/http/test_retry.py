from __future__ import annotations

import pytest

from megatron_lwz.http.retry import Failure, RequestFailure, RetryBudget


def failure(kind: Failure) -> RequestFailure:
    return RequestFailure("http://e", "advice", kind)


def test_the_budget_counts_failures_in_a_row():
    budget = RetryBudget(3)
    waits = [budget.spend(failure(Failure.CONNECTION)) for _ in range(3)]
    assert all(0.25 * 2**i / 2 <= wait <= 0.25 * 2**i for i, wait in enumerate(waits))
    with pytest.raises(RequestFailure, match="engine http://e: advice"):
        budget.spend(failure(Failure.CONNECTION))
    budget.reset()
    budget.spend(failure(Failure.CONNECTION))


def test_classes_have_their_own_limits():
    with pytest.raises(RequestFailure):
        RetryBudget(5).spend(failure(Failure.REFUSED))
    budget = RetryBudget(5)
    budget.spend(failure(Failure.CONTRACT))
    with pytest.raises(RequestFailure):
        budget.spend(failure(Failure.CONTRACT))
    with pytest.raises(RequestFailure):
        RetryBudget(0).spend(failure(Failure.TIMEOUT))


def test_each_class_has_its_own_count_backoff_and_limit():
    budget = RetryBudget(2, {Failure.CONTRACT: 3, Failure.TIMEOUT: 0}, {Failure.SERVER: 1.0})
    for _ in range(2):
        budget.spend(failure(Failure.CONNECTION))
    assert 0.5 <= budget.spend(failure(Failure.SERVER)) <= 1.0, "what other classes spent is theirs"
    for _ in range(3):
        budget.spend(failure(Failure.CONTRACT))
    for kind in (Failure.CONNECTION, Failure.CONTRACT, Failure.TIMEOUT, Failure.REFUSED):
        with pytest.raises(RequestFailure):
            budget.spend(failure(kind))


def test_waits_are_bounded():
    budget = RetryBudget(100, max_seconds=1.0)
    assert max(budget.spend(failure(Failure.TIMEOUT)) for _ in range(100)) <= 1.0
