import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.data.text.near_duplicates import UNIT, shingles
from megatron_lwz.data.text.sameness import MOST, SIZE, sameness, similarities, unit_hashes

TIDE = "The tide comes in slowly over the grey stones, and the old men on the pier say nothing at all about it."
BAKER = "A baker in our street lights his oven before dawn, so that every child has warm bread on the way to school."
TOWN = "街角的面包师天不亮就点起了炉火，好让每个孩子在上学的路上都能吃到热面包。"


def words(seed, count, vocabulary=3000):
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(vocabulary)}" for _ in range(count))


def jaccard(a, b):
    x, y = shingles(a, SIZE), shingles(b, SIZE)
    return len(x & y) / len(x | y)


def test_equal_texts_give_one_and_texts_without_a_common_phrase_none():
    assert sameness([TIDE, TIDE.upper().replace(",", ""), f"  {TIDE} "]) == 1
    assert sameness([TIDE, BAKER, TOWN]) == 0
    assert sameness([TIDE, TIDE, BAKER]) == pytest.approx(1 / 3), "one of three pairs"
    assert sameness([TIDE]) is None and sameness([]) is None


def test_texts_too_short_for_an_n_gram_count_as_one():
    assert sameness(["", " \n"]) == sameness(["Yes.", "yes"]) == sameness(["河", "河。"]) == 1
    assert sameness(["", "yes"]) == sameness(["yes", "yes yes"]) == sameness(["yes", TIDE]) == 0


@given(st.lists(st.text(st.sampled_from("abA 河流，é_7\ud800\u3400\u9fff\ua000"), max_size=60), min_size=2, max_size=5))
@settings(max_examples=100, deadline=None)
def test_short_texts_are_compared_exactly_and_units_are_those_of_the_other_measures(texts):
    found = similarities(texts)
    for row, a in enumerate(texts):
        units = UNIT.findall(a.lower())
        hashes = unit_hashes(a)
        assert len(set(units)) == len(set(hashes.tolist())) and len(units) == len(hashes)
        for column, b in enumerate(texts):
            if min(len(units), len(UNIT.findall(b))) >= SIZE:
                assert found[row, column] == jaccard(a, b)


def test_long_texts_are_estimated():
    first, second = words(1, 9000), words(2, 9000)
    texts = [
        first,
        second,
        first[: len(first) // 2] + second[len(second) // 2 :],
        first,
        first[: len(first) // 5],
        TIDE,
    ]
    assert len(shingles(first, SIZE)) > 4 * MOST
    found = similarities(texts)
    wanted = np.array([[jaccard(a, b) for a in texts] for b in texts])
    assert np.abs(found - wanted).max() < 0.04, "three standard errors"
    assert found[0, 3] == 1 and found[0, 1] == 0 and np.array_equal(found, found.T)


def test_a_hash_is_the_same_in_every_process_and_depends_on_the_order_of_letters():
    assert unit_hashes("Tide 河").tolist() == [7571203234232703707, 7031686468862017667]
    assert len(set(unit_hashes("tide edit diet tied 河 流").tolist())) == 6
    assert len(unit_hashes("x" * 1000)) == 1
