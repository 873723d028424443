import itertools
import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.data.text.near_duplicates import find_duplicates, shingles

ENGLISH = "The tide comes in slowly over the grey stones and the old men on the pier say nothing at all about it."
OTHER = "A baker in our street lights his oven before dawn, so that every child has warm bread on the way to school."
CHINESE = "潮水慢慢漫过灰色的石头，码头上的老人们一句话也没有说，只是静静地望着远方的灯塔。"
CHINESE_OTHER = "街角的面包师天不亮就点起了炉火，好让每个孩子在上学的路上都能吃到热面包。"


def test_copies_and_small_edits_are_found_in_english_and_chinese():
    edited = ENGLISH.replace("grey", "Gray").replace("say nothing", "say  nothing,")
    report = find_duplicates("\n\n".join([ENGLISH, OTHER, edited, ENGLISH]))
    assert (report.compared, report.duplicates, report.share) == (4, 2, 0.5)
    report = find_duplicates("\n".join([CHINESE, CHINESE_OTHER, CHINESE.replace("静静地", "默默地")]))
    assert (report.compared, report.duplicates) == (3, 1)


def test_different_and_short_paragraphs_are_not():
    assert find_duplicates(f"{ENGLISH}\n{OTHER}\n{CHINESE}\n{CHINESE_OTHER}").duplicates == 0
    assert find_duplicates("Chapter one\n" * 9).compared == 0
    assert find_duplicates("").share == 0.0


WORDS = st.lists(st.sampled_from("abcdef"), min_size=3, max_size=12).map(" ".join)


@given(st.lists(WORDS, max_size=8), st.floats(0.05, 1.0))
@settings(max_examples=200, deadline=None)
def test_the_index_equals_comparing_all_pairs(paragraphs, threshold):
    sets = [shingles(p, 2) for p in paragraphs]
    expected = sum(
        any(len(a & b) >= threshold * (len(a) + len(b) - len(a & b)) for a in sets[:i]) for i, b in enumerate(sets)
    )
    report = find_duplicates("\n".join(paragraphs), threshold=threshold, shingle=2, minimum_shingles=1)
    assert (report.compared, report.duplicates) == (len(paragraphs), expected)


def test_a_book_of_near_copies_stays_fast():
    rng = random.Random(0)
    base = ENGLISH.split() * 2
    paragraphs = []
    for number in range(500):  # 22,000 words, all alike: the worst case for the index
        words = list(base)
        words[rng.randrange(len(words))] = f"word{number}"
        paragraphs.append(" ".join(words))
    start = time.process_time()
    report = find_duplicates("\n".join(paragraphs))
    assert report.duplicates == 499
    assert time.process_time() - start < 3.0


def test_cjk_and_latin_mix_in_one_paragraph():
    assert shingles("GPU 加速 fast", 2) == shingles("gpu，加速，FAST", 2)
    assert len(shingles("GPU 加速 fast", 2)) == 3
    assert list(itertools.islice(shingles("one", 2), 1)) == []
