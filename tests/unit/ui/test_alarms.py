import re
from pathlib import Path

import pytest

from megatron_lwz.config import Config
from megatron_lwz.ui import alarms
from megatron_lwz.ui.alarms import find_alarms
from megatron_lwz.ui.pages.charts import SECTIONS
from megatron_lwz.ui.signals import Signals

HEALTHY = {
    "loss": 0.0, "entropy": 2.0, "grad_norm": 1.0, "format_valid": 0.9, "rollout/truncated": 0.05, "rollout/engines": 2.0,
    "rollout/engines_up": 2.0, "mismatch/kl": 1e-4, "mismatch/clipped": 0.0, "rollout/zero_variance_groups": 0.1,
    "rollout/masked_groups/writing": 0.0, "reward_masked/writing": 0.0, "length/parted": 0.0, "rollout/total_failed_groups": 0.0,
}  # fmt: skip


def rows(**last):
    """Twenty healthy steps, then five with changes."""
    named = {key.replace("__", "/"): value for key, value in last.items()}
    return [{"step": step, **HEALTHY, **(named if step > 20 else {})} for step in range(1, 26)]


def test_a_healthy_run_has_no_alarm():
    assert find_alarms(rows(), Signals(10, (0.02, 0.03), (0.05, 0.06), {("writing", "length"): 0.2})) == []
    assert find_alarms([], Signals()) == []


@pytest.mark.parametrize(
    ("last", "title", "serious"),
    [
        ({"rollout/engines_up": 1.0}, "1 of 2 engines", False),
        ({"rollout/engines_up": 0.0}, "2 of 2 engines", True),
        ({"entropy": 0.2}, "Entropy has collapsed", True),
        (
            {"length/parted": 1.0, "length/sampled/mean": 9000.0, "length/trained/mean": 5000.0},
            "does not see the lengths",
            False,
        ),
        ({"rollout/truncated": 0.6}, "60% of the rollouts are cut", False),
        ({"rollout/masked_groups/writing": 4.0, "reward_masked/writing": 1.0}, "writing is masked", True),
        ({"rollout/zero_variance_groups": 0.9}, "have no variance", False),
        ({"format_valid": 0.3}, "format breaks down", True),
        ({"mismatch/kl": 0.4}, "disagree", True),
        ({"grad_norm": 90.0}, "gradient norm jumps", False),
        ({"rollout/total_failed_groups": 3.0}, "3 prompt groups failed", False),
    ],
)
def test_each_sign_is_seen_alone(last, title, serious):
    (alarm,) = find_alarms(rows(**{key.replace("/", "__"): value for key, value in last.items()}), Signals())
    assert title in alarm.title and alarm.serious is serious and alarm.means and alarm.advice


@pytest.mark.parametrize(
    ("signals", "title"),
    [
        (Signals(9, repetition=(0.05, 0.5)), "repeat themselves"),
        (Signals(9, likeness=(0.1, 0.7)), "Siblings become alike"),
        (Signals(9, likeness=(0.9, 0.9)), "Siblings are alike"),
        (Signals(9, follows={("writing", "repetition"): 0.7}), "writing follows repetition"),
        (Signals(9, follows={("writing", "length"): 0.9}), "writing follows length"),
    ],
)
def test_signs_of_the_texts(signals, title):
    (alarm,) = find_alarms(rows(), signals)
    assert title in alarm.title


def test_every_key_that_an_advice_names_is_a_setting_and_every_chart_exists():
    titles = {chart.title for group in SECTIONS.values() for chart in group}
    source = Path(alarms.__file__).read_text(encoding="utf-8")
    for title in re.findall(r'chart="([^"]+)"', source):
        assert title in titles
    tree = Config().model_dump()
    keys = re.findall(r"\b((?:grpo|rollout|training|optimizer|reward|weight_sync)\.[a-z_.]*[a-z])", source)
    assert len(keys) > 8
    for key in keys:
        found = tree
        for part in key.split("."):
            assert part in found, key
            found = found[part]
