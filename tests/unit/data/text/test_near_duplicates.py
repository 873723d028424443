import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.data.text.near_duplicates import find_duplicates, paragraphs, shingles
from tests.support.cpu_time import within_cpu_seconds

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
@settings(max_examples=200)
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
    assert within_cpu_seconds(3.0, lambda: find_duplicates("\n".join(paragraphs))).duplicates == 499


def test_cjk_and_latin_mix_in_one_paragraph():
    assert shingles("GPU 加速 fast", 2) == shingles("gpu，加速，FAST", 2)
    assert len(shingles("GPU 加速 fast", 2)) == 3
    assert list(itertools.islice(shingles("one", 2), 1)) == []


def test_a_loop_without_line_breaks_is_seen_sentence_by_sentence():
    loop = "I walk to the sea and I look at the water all day. " * 40
    assert find_duplicates(loop).compared == 1, "one paragraph has no equal"
    report = find_duplicates(loop, longest=100)
    assert (report.compared, report.duplicates) == (40, 39)
    chinese = "我慢慢走到海边，看着远处的渔船一整天没有说话。" * 30
    report = find_duplicates(chinese, longest=100)
    assert (report.compared, report.duplicates) == (30, 29)
    assert find_duplicates("so very " * 400 + "\n" + "so very " * 300).duplicates == 1, (
        "two n-grams only, but a long line"
    )


def test_pieces_of_long_lines_hold_all_of_the_text_and_short_lines_stay_whole():
    line = 'He said: "No." Then, at 3.15, he left!  She waited… And waited. 他走了。她说：“好！”然后就睡了；天亮了'
    pieces = list(paragraphs(line, longest=5, shortest=4))
    assert "".join(pieces) == line and len(pieces) >= 4
    assert list(paragraphs(f"{line}\n\n  \nshort one", longest=100)) == [line, "short one"]
    assert list(paragraphs("a" * 500, longest=100)) == ["a" * 500], "one long word is no long paragraph"


@pytest.mark.parametrize("shared", [0.4, 0.7, 0.97])
def test_paragraphs_that_share_much_stay_fast(shared):
    rng = random.Random(1)
    words = [f"w{number}" for number in range(5000)]
    base = rng.choices(words, k=100)
    lines = [" ".join(base[: int(shared * 100)] + rng.choices(words, k=100 - int(shared * 100))) for _ in range(120)]
    report = within_cpu_seconds(0.5, lambda: find_duplicates("\n".join(lines)))  # 12,000 words
    assert report.duplicates == (119 if shared > 0.9 else 0)


@pytest.mark.parametrize("hostile", [".", ". ", "。", "…", '."', "x。”", "a" * 50 + " "])
def test_hostile_lines_cost_linear_time(hostile):
    text = hostile * (60_000 // len(hostile))

    def work() -> list[str]:
        find_duplicates(text, longest=5)
        return list(paragraphs(text, longest=5))

    pieces = within_cpu_seconds(2.0, work)
    assert "".join(pieces) == text and all(pieces)
