import random
import runpy

import pytest

from tests.support.paths import ROOT

TOOL = runpy.run_path(str(ROOT / "tools" / "measure_loops.py"))


@pytest.mark.parametrize("language", ["English", "Chinese"])
def test_at_the_defaults_texts_that_repeat_themselves_by_rights_raise_no_alarm(language):
    noise, setting = random.Random(1), TOOL["SETTINGS"][3]
    kinds = {name: make for name, make in TOOL["KINDS"].items() if name != "one line 100 times"}
    assert not [
        name for name, make in kinds.items() for _ in range(5) if TOOL["first_alarm"](make(noise, language), *setting)
    ]


def test_endless_loops_are_found_after_so_many_characters_or_repeats_as_the_rule_says():
    characters, repeats = TOOL["SETTINGS"][3]
    for unit, found in TOOL["delays"]():
        needed = max(characters / unit, repeats)
        assert needed <= found <= needed + TOOL["PIECE"] / unit + 1
