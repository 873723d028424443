import pytest

from megatron_lwz.data.text.structure import (
    check_asked,
    check_headings,
    check_lists,
    check_numbering,
    read_structure,
)
from tests.support.cpu_time import within_cpu_seconds

GOOD = """# The harbour
Some words before.

## Chapter 1: Dawn
Text.

1. first
2. second
   - one
   - two
3. third

## Chapter 2: Noon
More text.

## Chapter 3
The end.
"""
CHINESE = """第一章 启程
正文。

一、准备
他说了很多。
二、出发
他们走了。

第二章 归来
正文。
（一）早晨
（二）晚上
"""


@pytest.mark.parametrize("text", [GOOD, CHINESE, "Plain prose.\n\nAnd more of it.", ""])
def test_good_structure_has_no_fault(text):
    found = read_structure(text)
    assert [check(found).faults for check in (check_headings, check_numbering, check_lists)] == [(), (), ()]


def test_what_is_found():
    found = read_structure(GOOD)
    assert [(h.level, h.kind, h.number) for h in found.headings] == [
        (1, "", None), (2, "chapter", 1), (2, "chapter", 2), (2, "chapter", 3)
    ]  # fmt: skip
    assert [[(i.indent, i.style, i.number) for i in items] for items in found.lists] == [
        [(0, ".", 1), (0, ".", 2), (3, "-", None), (3, "-", None), (0, ".", 3)]
    ]
    assert found.paragraphs == 4
    found = read_structure(CHINESE)
    assert [(h.level, h.kind, h.number) for h in found.headings] == [(0, "章", 1), (0, "章", 2)]
    assert [i.number for items in found.lists for i in items] == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("# A\ntext\n### B\ntext", "level 3 below level 1"),
        ("# A\n# B\ntext", "nothing below 'A'"),
        ("text\n# A", "nothing below 'A'"),
        ("第一章 甲\n第二章 乙\n正文", "nothing below"),
        ("#\ntext", "without a title"),
        ("## A\ntext\n## B\ntext\n## a\ntext", "two headings 'a'"),
    ],
)
def test_faults_of_headings(text, fault):
    assert [fault in said for said in check_headings(read_structure(text)).faults] == [True]


def test_headings_that_are_no_faults():
    for text in ("# A\n## B\ntext", "第一卷\n第一章\n正文", "## B\nt\n# A\n## B\nt", "# A\n- item\n- item"):
        assert check_headings(read_structure(text)).faults == (), text


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("1. a\n2. b\n4. c", 1),
        ("1. a\n1. b\n1. c", 2),
        ("2. a\n3. b", 1),
        ("1. a\n\n2. b\n\n3. c", 0),
        ("1. a\ntext\n1. b\n2. c", 0),
        ("1. a\ntext\n2. b", 0),
        ("1. a\n   1) x\n   2) y\n2. b\n   1) x", 0),
        ("一、甲\n三、乙", 1),
        ("（1）甲\n（2）乙\n（2）丙", 1),
        ("Chapter 1\nt\nChapter 3\nt", 1),
        ("Chapter One\nt\nChapter Two\nt\nChapter III\nt", 0),
        ("第九章\nt\n第十章\nt\n第十一章\nt", 1),
        ("第一卷\nt\n第一章\nt\n第二章\nt\n第二卷\nt\n第一章\nt", 0),
        ("1998. That was the year.\n3.14 is pi\n5 apples", 0),
        ("Part one of the story was dull.\nChapter 7 begins here, he said,", 0),
    ],
)
def test_numbers_count_on(text, faults):
    assert len(check_numbering(read_structure(text)).faults) == faults


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("- a\n- b", 0),
        ("- a\n* b", 1),
        ("- a\n  * x\n  * y\n- b", 0),
        ("- a\n-\n- c", 1),
        ("- alone\ntext", 1),
        ("1. alone\ntext", 0),
        ("---\n***\n* * *\n___", 0),
        ("```\n- a\n* b\n1. x\n# y\n```\ntext", 0),
        ("- a\n1. b", 1),
        ("- a\n- b\n\n1. c\n2. d", 0),
        ("1. a\n\n   - x\n   - y\n\n2. b", 0),
        ("· 甲\n· 乙", 0),
    ],
)
def test_faults_of_lists(text, faults):
    assert len(check_lists(read_structure(text)).faults) == faults


def test_what_was_asked_is_counted():
    check = check_asked(
        read_structure(GOOD), [("headings", 3, 5), ("lists", 0, 0), ("items", 5, 5), ("paragraphs", 9, 9)]
    )
    assert (check.places, check.value) == (4, 0.5)
    assert check.faults == ("1 lists, asked 0 to 0", "4 paragraphs, asked 9 to 9")
    assert check_asked(read_structure(GOOD), []).value is None


@pytest.mark.parametrize(
    "hostile", ["#", "# ", " ", "- ", "1. ", "第一", "(", "（一", "```\n", "* * ", "i" * 30, "\n1.", "- a\n\n", "# a\n"]
)
def test_hostile_text_costs_linear_time(hostile):
    text = hostile * (100_000 // len(hostile))

    def work() -> None:
        found = read_structure(text)
        for check in (check_headings, check_numbering, check_lists):
            check(found)

    within_cpu_seconds(2.0, work)
