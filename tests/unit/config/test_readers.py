"""Settings that a stage does not read are named: at its start, by `lwz config show`, and never for an example."""

from __future__ import annotations

import re

import pytest

from megatron_lwz.cli import common, config
from megatron_lwz.config import load_config, readers, unread, unread_note, validate
from megatron_lwz.config.kept import ALL, KEPT
from megatron_lwz.config.readers import READERS
from megatron_lwz.config.reference import all_sections
from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"
STAGES = {"pretrain": "pretrain", "4_pretrain": "pretrain", "sft": "sft", "reward_model": "reward_model", "dpo": "dpo"}
NO_CONFIGS = {"3_corpus", "grammar", "model"}
"""A corpus' specification, the demo's grammar, and a base of other configs."""
OWN = {"data.prompts": "p.jsonl", "data.corpus": ["c.jsonl"], "training.z_loss": 0.1, "sft.turns": "last"}


def tree(keys):
    found = {}
    for key in keys:
        section, _, name = key.partition(".")
        found.setdefault(section, {})[name] = OWN[key]
    return found


def test_every_name_is_a_section_or_a_key_that_some_stage_reads():
    known = {section.key for section in all_sections()}
    known |= {f"{section.key}.{setting.name}" for section in all_sections() for setting in section.settings}
    assert set(READERS) <= known
    assert all(readers(name) for name in READERS)
    for name, kept in KEPT.items():
        assert set(readers(name)) >= set(kept.stages) or kept.stages == ALL, (
            f"{name} is kept by a stage that ignores it"
        )


@pytest.mark.parametrize(
    ("stage", "ignored"),
    [
        ("grpo", ["training.z_loss", "data.corpus", "sft.turns"]),
        ("pretrain", ["data.prompts", "sft.turns"]),
        ("sft", ["data.prompts", "data.corpus"]),
        ("reward_model", ["training.z_loss", "data.prompts", "data.corpus", "sft.turns"]),
        ("dpo", ["training.z_loss", "data.prompts", "data.corpus", "sft.turns"]),
    ],
)
def test_what_is_set_for_other_stages_is_unread(stage, ignored):
    assert unread(validate(tree(OWN)), stage) == ignored
    assert unread(validate(tree(set(OWN) - set(ignored))), stage) == []
    assert unread(validate({"sft": {"turns": "all"}, "launch": {"nodes": 4}}), stage) == [], "a default, and lwz launch"


def test_one_line_names_them():
    config = validate({"sft": {"turns": "last"}, "data": {"prompts": "p.jsonl"}})
    assert unread_note(config, "grpo") == "stage grpo does not read sft.turns: what is set there changes nothing"
    assert unread_note(validate({}), "sft") is None
    ten = [f"rollout.{name}" for name in ("concurrency", "max_new_tokens", "retries", "engine_threads")]
    ten += [
        f"grpo.{name}" for name in ("group_size", "clip_low", "clip_high", "std_floor", "mismatch_cap", "dual_clip")
    ]
    config = load_config(None, [f"{key}=7" if key != "grpo.clip_low" else f"{key}=0.1" for key in ten])
    assert unread_note(config, "sft").endswith(
        "and 2 more (lwz config show lists them): what is set there changes nothing"
    )


def test_show_and_explain_say_it_too(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("sft: {turns: last}\ndata: {template: bare}\n")
    assert common.run(config.main, ["show", str(tmp_path), "--changed"]) == 0
    assert re.findall(r"^# (.*)$", capsys.readouterr().out, re.M) == [
        "not read by stage pretrain: data.template, sft.turns",
        "not read by stage reward_model: data.template, sft.turns",
        "not read by stage dpo: sft.turns",
        "not read by stage grpo: sft.turns",
    ]
    assert common.run(config.main, ["show", str(tmp_path), "--changed", "--stage", "sft"]) == 0
    assert "#" not in capsys.readouterr().out
    assert common.run(config.main, ["explain", "data.template"]) == 0
    assert "  read by  sft, dpo, grpo\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(EXAMPLES.glob("*/*.yaml")) if path.stem not in NO_CONFIGS],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_a_stage_reads_all_that_its_example_sets(path):
    assert unread(load_config(path), STAGES.get(path.stem, "grpo")) == []
