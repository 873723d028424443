import random
import subprocess
import sys

from megatron_lwz.data.preparation.copies import CopyFinder

WORDS = [a + b for a in "bcdfghklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]


def text(generator, words=60):
    return " ".join(generator.choice(WORDS) for _ in range(words))


def test_exact_copies_whatever_their_case_width_and_spaces():
    finder = CopyFinder()
    assert finder.add("Write a story, ＡＢＣ.") is None
    assert finder.add("  write a\nSTORY, abc. ") == "exact"
    assert finder.add("写作文") is None and finder.add("写作文") == "exact"
    assert finder.add("…") is None and finder.add("!") is None
    assert finder.add("half a pair \ud800 of surrogates") is None


def test_near_copies_in_both_languages():
    finder = CopyFinder()
    english = "Write a long and careful story about a lighthouse keeper who finds a letter in a bottle on the beach. "
    chinese = "请写一篇关于一位守塔人在海滩上发现漂流瓶的长篇故事，语言要优美，情节要曲折，结尾要出人意料。"
    for base in (english * 2, chinese * 2):
        assert finder.add(base) is None
        assert finder.add(base + " Thanks!") == "near"
        assert finder.add(base + " Thanks!") == "exact"
    assert finder.add("Write a long and careful report about the history of lighthouses on the northern coast.") is None


def test_finds_what_is_over_the_threshold_and_nothing_under_it():
    generator = random.Random(1)
    finder = CopyFinder(threshold=0.8)
    missed = false = 0
    for _ in range(300):
        words = text(generator).split()
        assert finder.add(" ".join(words)) is None
        like, unlike = list(words), list(words)
        like[0] = "other"  # 1 of 58 shingles differs
        for place in range(0, 60, 6):  # about half of them differ
            unlike[place] = "other"
        missed += finder.add(" ".join(like)) != "near"
        false += finder.add(" ".join(unlike)) is not None
    assert missed == 0 and false == 0


def test_the_same_in_every_process():
    program = (
        "from megatron_lwz.data.preparation.copies import CopyFinder\n"
        "finder = CopyFinder(); finder.add('one two three four five'); print(sorted(finder._buckets))"
    )
    run = [sys.executable, "-c", program]
    assert len({subprocess.run(run, capture_output=True, check=True).stdout for _ in range(2)}) == 1
