"""`lwz config`: what it shows, compares and explains, and the schema that editors use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from omegaconf import OmegaConf

from megatron_lwz.cli import common, config
from megatron_lwz.config import Config, load_config, validate
from megatron_lwz.config.reference import all_sections, json_schema

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "examples" / "tiny_cpu" / "config.yaml"


def said(capsys: Any, *argv: str) -> str:
    assert common.run(config.main, list(argv)) == 0
    return capsys.readouterr().out


def test_show_is_the_whole_config_and_changed_what_differs_from_the_defaults(capsys):
    whole = load_config(TINY, ["run.seed=5"])
    assert validate(yaml.safe_load(said(capsys, "show", str(TINY), "run.seed=5"))) == whole
    changed = yaml.safe_load(said(capsys, "show", str(TINY), "run.seed=5", "--changed"))
    assert validate(changed) == whole and changed["run"]["seed"] == 5
    assert "beta1" not in changed.get("optimizer", {}) and "judge" not in changed
    assert said(capsys, "show", str(TINY), "rollout.temperature=0.8", "--changed").find("temperature") == -1


def test_show_of_the_defaults_has_nothing_changed(capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("run: {seed: 1234}\n")
    assert said(capsys, "show", str(tmp_path), "--changed") == "# nothing differs from the defaults\n"


def test_diff_names_the_keys_in_which_two_configs_differ(capsys, tmp_path):
    other = tmp_path / "other.yaml"
    data = load_config(TINY).data
    other.write_text(
        f"base: {TINY}\nrun: {{seed: 77}}\nreward: {{length: {{unit: characters}}}}\n"
        f"data: {{prompts: {data.prompts}, held_out_prompts: {data.held_out_prompts}}}\n"  # they lie beside the file
    )
    lines = said(capsys, "diff", str(TINY), str(other)).splitlines()
    assert [line.split(":")[0] for line in lines] == ["run.seed", "reward.length.unit"]
    assert lines[0].endswith(" -> 77") and lines[1].endswith(' -> "characters"')
    assert said(capsys, "diff", str(TINY), str(TINY)) == "no setting differs\n"


def test_explain_says_type_bounds_default_and_whether_a_run_keeps_the_key(capsys):
    text = said(capsys, "explain", "rollout.temperature")
    assert "sampling temperature" in text and "float, above 0" in text and "default  0.8" in text
    assert "kept" in text and "the log-probs in the journal" in text
    text = said(capsys, "explain", "rollout.controller")
    assert "thread | process" in text and 'default  "thread"' in text and "kept" not in text
    assert "float, above 0, at most 1\n" in said(capsys, "explain", "rollout.top_p")


def test_explain_lists_the_keys_of_a_section_and_those_with_a_word(capsys):
    text = said(capsys, "explain", "reward.length")
    assert "\n  reward.length.unit\n" in text and "reward.format" not in text
    assert "\n  reward.length\n" in said(capsys, "explain", "reward")
    text = said(capsys, "explain", "reward.functions")
    assert "custom components" in text and "\n  reward.functions.weight\n" in text, "a key and a section at once"
    assert "  rollout.max_staleness\n" in said(capsys, "explain", "Staleness")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["explain", "rollout.max_stalness"], "did you mean rollout.max_staleness or"),
        (["explain", "temprature"], "did you mean judge.temperature or rollout.temperature?"),
        (["explain", "§§"], "docs/configuration.md has all keys"),
        (["show", "nowhere.yaml"], "nowhere.yaml"),
        (["diff", str(TINY)], "NEW"),
        (["guess"], "'guess'"),
        ([], "show | diff | explain | schema"),
    ],
)
def test_errors_are_one_line(capsys, argv, words):
    assert common.run(config.main, argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_every_setting_has_a_meaning_and_the_defaults_are_those_of_the_config():
    names = set()
    tree = Config()
    for section in all_sections():
        assert section.meaning
        found: Any = tree
        for part in section.key.split("."):
            found = getattr(found, part) if found is not None and not isinstance(found, tuple) else None
        for setting in section.settings:
            assert setting.meaning and (setting.kind or setting.choices)
            assert found is None or found == () or getattr(found, setting.name) == setting.default
            names.add(f"{section.key}.{setting.name}")
    assert len(names) > 250 and {"run.dir", "reward.writing.hf", "judge.url", "reward.judges.kind"} <= names


def test_the_schema_accepts_every_example_and_the_short_forms(capsys):
    schema = json.loads(said(capsys, "schema"))
    checker = jsonschema.Draft202012Validator(schema)
    checker.check_schema(schema)
    files = [
        file
        for file in (ROOT / "examples").glob("*/*.yaml")
        if {"run", "model"} & set(yaml.safe_load(file.read_text()))
    ]
    assert len(files) > 8
    for file in files:
        tree = OmegaConf.to_container(
            OmegaConf.load(file)
        )  # as YAML 1.2, which editors use, it reads 1.0e12 as a number
        assert not [error.message for error in checker.iter_errors(tree)], file
    for text in (
        "base: other.yaml",
        "rollout: {urls: 'http://a:1,http://b:2', stop: </answer>}",
        "reward: {functions: 'my:f'}",
        "rollout: {urls: [http://a:1]}",
        "logging: {length_buckets: 5}",
    ):
        assert checker.is_valid(yaml.safe_load(text)), text


@pytest.mark.parametrize(
    "text",
    [
        "rollot: {}",
        "rollout: {temprature: 1}",
        "rollout: {temperature: warm}",
        "rollout: {temperature: 0}",
        "rollout: {controller: fibre}",
        "training: {steps: 1.5}",
    ],
)
def test_the_schema_refuses_what_the_config_refuses(text):
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(yaml.safe_load(text))
