import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_lwz.data.text.length import count_units
from megatron_lwz.evaluation.text_metrics import distinct, expected_language, language_share, range_score
from megatron_lwz.types import LengthRange

PUBLIC = json.loads((Path(__file__).parent / "data" / "longbench_write.json").read_text(encoding="utf-8"))


def of_number(asked: int, written: int) -> float:
    return range_score(LengthRange(asked, asked), written)


def test_length_score_equals_the_public_script_on_the_same_outputs():
    rows = PUBLIC["rows"]
    assert [count_units(row["response"]) for row in rows] == [row["response_length"] for row in rows]
    scores = [of_number(row["length"], count_units(row["response"])) for row in rows]
    assert scores == [row["score"] for row in rows]
    assert float(np.mean(scores)) == PUBLIC["mean"]


@pytest.mark.parametrize(
    ("x", "y", "score"), [(100, 100, 100), (100, 250, 50), (100, 50, 50), (100, 0, 0), (100, 400, 0)]
)
def test_length_score_by_hand(x, y, score):
    assert of_number(x, y) == pytest.approx(score)


@given(st.integers(1, 20000), st.integers(1, 20000), st.integers(0, 100000))
def test_a_range_is_scored_against_its_nearer_end(one, other, written):
    lower, upper = sorted((one, other))
    nearest = min(max(written, lower), upper)
    assert range_score(LengthRange(lower, upper), written) == of_number(nearest, written)


def test_inside_a_range_the_score_is_full():
    assert [range_score(LengthRange(100, 200), n) for n in (100, 150, 200)] == [100.0] * 3
    assert range_score(LengthRange(100, 200), 50) == of_number(100, 50)
    assert range_score(LengthRange(0, 200), 0) == 100.0


def test_distinct_counts_words_and_cjk_characters():
    assert distinct("A rose is a rose", 1) == 3 / 5
    assert distinct("A rose is a rose", 2) == 3 / 4
    assert distinct("天天向上", 1) == 3 / 4
    assert distinct("one", 2) is None


def test_language():
    assert language_share("一二 three", "chinese") == pytest.approx(2 / 3)
    assert language_share("123 …", "english") is None
    assert [expected_language("写一篇", None), expected_language("Write", "zh-CN"), expected_language("Write", "fr")] == [
        "chinese", "chinese", None,
    ]  # fmt: skip
