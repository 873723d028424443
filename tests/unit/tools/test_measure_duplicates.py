import runpy

import pytest

from tests.support.paths import ROOT

EASY = (
    "the same",
    "case, spaces, punctuation",
    "a sentence added",
    "a sentence left out",
    "sentences in another order",
)
OTHER = (
    "new, partly on the same topic",
    "another text, same opening",
    "half of it, then another text",
    "a form filled in again",
)


@pytest.mark.parametrize("language", ["English", "Chinese"])
def test_the_detector_finds_copies_and_leaves_look_alikes(language):
    found, precision, recall = runpy.run_path(str(ROOT / "tools" / "measure_duplicates.py"))["measure"](language, 2400)
    shares = {kind: yes / total for kind, (total, yes) in found.items()}
    assert precision >= 0.99 and recall >= 0.7
    assert {kind: shares[kind] for kind in EASY if shares[kind] < 0.94} == {}
    assert shares["1 word in 20 replaced"] >= 0.85
    assert {kind: shares[kind] for kind in OTHER if shares[kind] > 0.02} == {}
