import numpy as np
import pytest

from megatron_lwz.config.sections import FormatReward
from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.parts import Piece, cut_chapters, cut_parts, cut_responses, measure_parts, unit_starts
from megatron_lwz.evaluation.responses import Response
from megatron_lwz.evaluation.slop import read_slop
from tests.support.longform import write_data


def prose(count: int, seed: int = 0) -> str:
    """Random words in sentences of 12 and paragraphs of 5 sentences."""
    rng = np.random.default_rng(seed)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, 5)) for _ in range(count)]
    sentences = [" ".join(words[i : i + 12]) + ". " for i in range(0, count, 12)]
    return "\n\n".join("".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5))


@pytest.mark.parametrize("text", [prose(1000), "字。" * 400, "word " * 800, prose(40)])
@pytest.mark.parametrize("count", [2, 8, 13])
def test_parts_are_the_text_and_of_about_equal_length(text, count):
    parts = cut_parts(text, count)
    lengths = [len(unit_starts(part)) for part in parts]
    assert "".join(parts) == text and len(parts) == count
    size = sum(lengths) / count
    assert all(0.5 * size - 1 <= length <= 1.5 * size + 1 for length in lengths)


def test_cuts_lie_between_paragraphs_where_one_ends_near():
    assert all(part.endswith("\n\n") for part in cut_parts(prose(1920), 4)[:-1])
    assert all(part.rstrip().endswith(".") for part in cut_parts(prose(1920).replace("\n", " "), 4))


def test_what_is_too_short_is_counted():
    responses = [Response("a", prose(400)), Response("b", prose(100)), Response("c", "")]
    pieces, short = cut_responses(responses, parts=8)
    assert [piece.id for piece in pieces] == ["a"] and short == 2
    pieces, short = cut_responses(responses, parts=8, every=50)
    assert [len(piece.parts) for piece in pieces] == [8, 2] and short == 1


@pytest.mark.parametrize(
    "headings",
    [
        ["Chapter 1", "Chapter 2: Night", "Chapter Three"],
        ["## Chapter 1", "## Chapter 2", "## Chapter 3"],
        ["## One", "## Two", "## Three"],
        ["第一章 起", "第二章 承", "第三章 合"],
    ],
)
def test_a_text_is_cut_before_the_headings_of_its_chapters(headings):
    title = "# The whole\n\nA motto.\n\n"
    text = title + "".join(f"{heading}\n\n### scene\n\n{prose(60, n)}\n\n" for n, heading in enumerate(headings))
    parts = cut_chapters(text)
    assert "".join(parts) == text and len(parts) == 3 and parts[0].startswith(title)
    assert [part.startswith(heading) for part, heading in zip(parts[1:], headings[1:], strict=True)] == [True, True]


def test_a_text_without_chapters_is_one_part():
    assert cut_chapters(prose(100)) == [prose(100)] and cut_chapters("") == [""]
    responses = [Response("a", prose(400)), Response("b", f"# a\n{prose(50)}\n# b\n{prose(50)}")]
    pieces, short = cut_responses(responses, parts=8, chapters=True)
    assert [piece.id for piece in pieces] == ["b"] and short == 1


def test_repetition_is_seen_in_the_part_that_repeats():
    first, second = prose(400, 1), prose(400, 2)
    rows = measure_parts(Piece("a", 0, [first, second, first], "Write"), FormatReward())
    assert [row["repeated"] for row in rows] == [0, 0, pytest.approx(1, abs=0.02)]
    assert [row["near_duplicates"] for row in rows] == [0, 0, 1]
    assert rows[0]["language_share"] == 1 and "slop" not in rows[0]
    loop = measure_parts(Piece("a", 0, [first, "so it went on and on " * 60], "Write"), FormatReward())
    assert loop[1]["distinct_1"] < 0.05 < loop[0]["distinct_1"]
    assert loop[1]["repeated"] > 0.9


def test_distinct_words_do_not_depend_on_the_length_of_a_part():
    rows = measure_parts(Piece("a", 0, ["one two three four " * 5, "one two three four"]), FormatReward())
    assert rows[0]["distinct_1"] == rows[1]["distinct_1"] == 1


def test_slop_counts_words_and_phrases_by_the_public_weights(tmp_path):
    lists = read_slop(write_data(tmp_path))
    assert lists.score("She took deep breath; he whispered.") == pytest.approx(1000 * (1 + 2 + 8) / 6)
    assert lists.score("A well-whispered word, don't") == 0, "the public script drops words with a hyphen"
    assert lists.score("…") is None and lists.score("他低声说") == 0


def test_a_broken_list_is_named(tmp_path):
    write_data(tmp_path)
    (tmp_path / "data" / "slop_list.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match=r"slop_list.json: not a slop list"):
        read_slop(tmp_path)
    with pytest.raises(DataError, match=r"no slop_list.json here"):
        read_slop(tmp_path / "data" / "x")
