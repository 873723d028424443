import asyncio
import json

import pytest

from megatron_lwz.config import save_config, validate
from megatron_lwz.ui.export import fenced
from megatron_lwz.ui.pages.compare import differences
from megatron_lwz.ui.textdiff import compare, share_in_common
from tests.support.reading_run import HOSTILE, ReadingRun, chinese, english

from .conftest import served


def text_of(parts):
    return "".join(text for _, text in parts)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (english(300, 1), english(300, 2)),
        (chinese(300, 1), english(100)),
        ("same\ntext", "same\ntext"),
        ("", "new"),
        (HOSTILE, HOSTILE * 2),
    ],
)
def test_both_texts_are_in_the_difference_whole_and_in_order(left, right):
    pairs = list(compare(left, right))
    for side, text in (("left", left), ("right", right)):
        shown = [text_of(getattr(pair, side)) for pair in pairs]
        assert [line for line in shown if line] == [line for line in text.split("\n") if line.strip()]


def test_a_changed_word_is_marked_alone():
    (pair,) = compare("The ferry leaves the quiet harbour.", "The ferry leaves the loud harbour.")
    assert (
        ("changed", "quiet") in pair.left and ("changed", "loud") in pair.right and ("same", " harbour.") in pair.right
    )
    (pair,) = compare("渡船离开安静的港口。", "渡船离开喧闹的港口。")
    assert ("changed", "安静") in pair.left and ("same", "渡船离开") in pair.right
    assert share_in_common("a\nb", "a\nc") == 0.5 and share_in_common("", "") == 1.0


def test_settings_that_differ_are_found_and_only_they():
    a = {"run": {"dir": "a", "seed": 1}, "grpo": {"clip_high": 0.2, "lists": [1, 2]}}
    b = {"run": {"dir": "b", "seed": 1}, "grpo": {"clip_high": 0.3, "lists": [1, 2]}, "new": True}
    assert differences([a, b]) == {"grpo.clip_high": ["0.2", "0.3"], "new": [None, "True"]}
    deep: dict = {}
    for _ in range(500):
        deep = {"x": deep}
    assert differences([deep, {}]) == {}


def test_two_runs_are_drawn_into_the_same_charts(tmp_path):
    for number in (1, 2):
        run = ReadingRun(tmp_path / f"run{number}", name=f"run {number} {HOSTILE}")
        for step in range(1, 5):
            run.add_step(step)
        run.close()
    save_config(validate({"run": {"dir": "x"}, "grpo": {"clip_high": 0.28}}), tmp_path / "run2" / "config.yaml")

    async def main():
        async with served(tmp_path / "run1", tmp_path / "run2") as (client, _):
            found = []
            for path in ("/", "/compare?run=run1&run=run2", "/compare?run=run1", "/compare?run=run1&run=other"):
                async with client.get(path) as answer:
                    found.append((answer.status, await answer.text()))
            return found

    start, both, *wrong = asyncio.run(main())
    assert start[0] == both[0] == 200 and [status for status, _ in wrong] == [400, 400]
    assert "grpo.clip_high" in both[1] and "run1: entropy" in both[1] and "run2: entropy" in both[1]
    assert "<script>document" not in both[1] and "\u202e" not in both[1]
    assert start[1].count('type="checkbox"') == 2


def test_one_prompt_over_the_steps(pages):
    path = "/runs/novels/prompt?id=novel-en"
    whole, chosen, strange, none = pages(path, f"{path}&a=0.0&b=0.1", f"{path}&a=2.0", "/runs/novels/prompt?id=nothing")
    assert whole[0] == chosen[0] == 200 and none[0] == 404
    assert "group 0" in whole[1] and "group 3" in whole[1] and "<del>" in chosen[1] and "<ins>" in chosen[1]
    assert strange[0] == 200 and "belongs to another prompt" in strange[1]


def test_a_rollout_is_exported_as_markdown_in_which_nothing_acts(pages):
    (status, text, headers), (_, whole, _) = pages(
        "/runs/novels/rollouts/2/1/markdown", "/runs/novels/rollouts/0/0/markdown"
    )
    assert status == 200 and headers["Content-Disposition"] == 'attachment; filename="novels-2-1.md"'
    assert "\u202e" not in text and "⟦U+202E⟧" in text and "## Whole response" in text
    inside = False
    for line in text.split("\n"):
        if line.startswith("```"):
            inside = not inside
        assert inside or "<script>" not in line
    assert "## Thinking" in whole and "Chapter 2" in whole
    assert fenced("a ```` b").startswith("`````text\n")
    json.dumps(text)
