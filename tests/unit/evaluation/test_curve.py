import json

import numpy as np
import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.evaluation import curve, longform_files
from megatron_lwz.evaluation.parts import Piece
from tests.support.longform import write_data, write_runs

MARKS = {"Coherent": 18.0, "Purple Prose": 2.0, "Forced Poetry or Metaphor": 4.0}


def values(texts: int, *, drop_from: int | None = None, seed: int = 0) -> list[list[float | None]]:
    """Texts of different level with noise; from a part on (1 is the first) they are worse."""
    rng = np.random.default_rng(seed)
    table = rng.normal(0, 1, (texts, 1)) + rng.normal(0, 0.5, (texts, 8))
    if drop_from is not None:
        table[:, drop_from - 1 :] -= 1
    return [list(map(float, row)) for row in table]


def decay(table, **given):
    return curve.find_decay(table, range(len(table)), parts=8, lower_is_better=False, **given)


def test_a_decay_is_found_where_it_was_planted():
    for part in (3, 5, 8):
        found = decay(values(30, drop_from=part))
        assert found.part == part and found.differences[:2] == [None, None]
    mirrored = [[-v for v in row] for row in values(30, drop_from=5)]
    assert curve.find_decay(mirrored, range(30), parts=8, lower_is_better=True).part == 5
    assert curve.find_decay(mirrored, range(30), parts=8, lower_is_better=False).part is None


def test_without_a_decay_one_is_seldom_claimed():
    found = sum(decay(values(20, seed=seed)).part is not None for seed in range(40))
    assert found <= 2


def test_texts_end_at_different_parts_and_few_prompts_claim_nothing():
    table = [row[: 3 + n % 6] for n, row in enumerate(values(60, drop_from=4))]
    found = decay(table)
    assert found.part == 4 and found.differences[7].count == 10
    assert decay(values(9, drop_from=4)).part is None
    assert curve.find_decay(values(30, drop_from=4), ["a"] * 30, parts=8, lower_is_better=False).part is None


def test_the_report_holds_curves_changes_and_rows():
    pieces = [Piece(str(n), 0, [f"{w} " * 30 for w in "abcd"], "Write") for n in range(12)]
    marks = [[{"quality": 9.0 - part + n % 2} for part in range(4)] for n in range(12)]
    marks[0][3] = None
    found = curve.summarise(pieces, marks=marks)
    assert found.reference == 1 and found.unjudged == 1
    assert [e.value for e in found.curves["quality"][:2]] == [9.5, 8.5] and found.curves["quality"][3].count == 11
    assert found.decays["quality"].part == 2 and "length" not in found.decays
    assert found.metrics["change/quality"].value == -3 and found.metrics["change/quality"].count == 11
    assert found.rows[1]["change/quality"] == -3 and len(found.rows[1]["parts"]) == 4
    json.dumps(found.as_json(), allow_nan=False)


def test_a_chapter_scores_as_in_the_public_script(tmp_path):
    rubric = longform_files.read_rubric(write_data(tmp_path))
    # scoring.py at d1c6255: inverted 20 − mark, the fifth-weight criterion raised to 1.7
    expected = (18 * 1 + 18 * 1 + (16 / 20) ** 1.7 * 20 * 5) / 7
    assert longform_files.chapter_score(MARKS, rubric) == pytest.approx(expected)
    assert longform_files.chapter_score({}, rubric) is None


def test_stories_and_public_questions(tmp_path):
    rubric = longform_files.read_rubric(write_data(tmp_path) / "data")
    path = write_runs(tmp_path / "r.json", {"1": ["one {x}", "two"], "2": ["only"], "3": []}, {"1": [MARKS]})
    (story,) = longform_files.read_stories(path)
    assert story.marks == [MARKS, None] and story.judge == "judge-1" and longform_files.is_runs_file(path)
    first, second = longform_files.chapter_questions(story, rubric)
    assert first.user.startswith("Prompt: Write 1 Plan: plan of 1 People: people of 1 Chapter 1: one {x}\n")
    assert "Lower is better: Purple Prose, Forced Poetry or Metaphor\nCriteria:\n- Coherent\n" in second.user
    assert first.version == second.version != "" and "{" not in second.user


def test_marks_are_read_from_the_public_form(tmp_path):
    rubric = longform_files.read_rubric(write_data(tmp_path))
    reply = (
        "[Analysis]\nCoherent: 3\n[Scores]\n**Coherent**: 18\nPurple Prose: [2]\nforced poetry or metaphor: 4.5/20\n"
    )
    assert longform_files.read_marks(reply, rubric) == MARKS | {"Forced Poetry or Metaphor": 4.5}
    assert longform_files.read_marks("[Scores]\nCoherent: 18\nPurple Prose: 2", rubric) is None
    assert longform_files.read_marks(reply.replace("18", "21"), rubric) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "not a runs file"),
        ('{"a": {"longform_tasks": {}}}', "no story with two chapters"),
        ('{"a": {"longform_tasks": {"1": {"1": {"step_outputs": {}}}}}}', "KeyError"),
        ('{"a": {"longform_tasks": {"1": []}}}', "AttributeError"),
        ('{"a": {"longform_tasks": {}}, "b": {"longform_tasks": {}}}', "name one by --run: a, b"),
        ('{"a": {"longform_tasks"', "line 1, column"),
    ],
)
def test_a_malformed_runs_file_is_one_line(tmp_path, text, said):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(DataError, match=said) as raised:
        longform_files.read_stories(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_marks_out_of_range_are_refused(tmp_path):
    path = write_runs(tmp_path / "r.json", {"1": ["one", "two"]}, {"1": [MARKS | {"Coherent": 21}]})
    with pytest.raises(DataError, match="not a mark from 0 to 20"):
        longform_files.read_stories(path)
