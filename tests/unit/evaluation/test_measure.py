import numpy as np
import pytest

from megatron_lwz.evaluation.measure import measure
from megatron_lwz.evaluation.responses import Response
from megatron_lwz.evaluation.statistics import estimate
from megatron_lwz.types import LengthRange

LINE = "the quick brown fox jumps over the lazy dog and runs far into the dark wood"


def words(count: int) -> str:
    return " ".join(chr(97 + n % 26) * (n // 26 + 1) for n in range(count))


def test_every_metric_of_a_known_set():
    responses = [
        Response("a", words(100), prompt="Write", length=LengthRange(100, 100), finish_reason="stop", template="think"),
        Response(
            "b",
            words(250),
            prompt="Write",
            length=LengthRange(100, 100),
            finish_reason="length",
            template="think",
            fault="no answer",
        ),
        Response("c", f"{LINE}\n{LINE}", prompt="写一篇", length=LengthRange(3000, 5000)),
        Response("d", ""),
    ]
    found = measure(responses)
    value = {name: e.value for name, e in found.metrics.items()}
    count = {name: e.count for name, e in found.metrics.items()}
    assert value["s_l"] == pytest.approx((100 + 50 + 0) / 3) and count["s_l"] == 3
    assert value["in_range"] == pytest.approx(1 / 3) and value["empty"] == 0.25
    assert (value["truncated"], count["truncated"]) == (0.5, 2)
    assert (value["format_valid"], found.faults) == (0.5, {"no answer": 1})
    assert value["near_duplicates"] == pytest.approx(1 / 6), "one of two paragraphs in one of three texts"
    assert value["language_consistent"] == pytest.approx(2 / 3)
    assert [(b.lower, b.upper, b.written.value, b.score.value) for b in found.curve] == [
        (0, 500, 175, 75),
        (4000, 20000, 32, 0),
    ]
    assert found.rows[1]["length"] == 250


def test_what_no_response_has_is_not_reported():
    found = measure([Response("a", "text")])
    assert {"s_l", "truncated", "format_valid", "language_consistent"}.isdisjoint(found.metrics) and not found.curve


def test_intervals_cover_the_mean_and_resample_whole_prompts():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        found = estimate(list(rng.normal(3, 1, 60)), seed=trial)
        hits += found.low <= 3 <= found.high
    assert 0.90 <= hits / 200 <= 0.98
    few = sum(e.low <= 0 <= e.high for e in (estimate(list(rng.normal(0, 1, 10)), seed=t) for t in range(200)))
    assert 0.90 <= few / 200 <= 0.985, "plain percentiles cover less than 90 % of ten values' means"
    one = estimate([0.0, 1.0] * 50)
    tied = estimate([0.0] * 50 + [1.0] * 50, ["a"] * 50 + ["b"] * 50)
    assert tied.value == one.value == 0.5 and tied.high - tied.low > 3 * (one.high - one.low)
    assert estimate([]) is None and estimate([2.0]).low == 2.0
    assert estimate([1.0, 2.0, 4.0]) == estimate([1.0, 2.0, 4.0])
