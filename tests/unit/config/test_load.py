"""The config tree: precedence, round trip, and one-line errors that name the key."""

from __future__ import annotations

import json
import subprocess
import sys
from operator import attrgetter

import pytest

from megatron_lwz.config import Config, load_config, save_config, validate
from megatron_lwz.errors import ConfigError, DataError

TINY = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def tiny(**sections) -> Config:
    return validate({"model": {"architecture": TINY, "vocab_padding": 128}} | sections)


def test_precedence_is_defaults_base_file_override(tmp_path):
    write(tmp_path, "base.yaml", "run: {seed: 1, name: base}\noptimizer: {lr: 1.0e-3, beta1: 0.5}\n")
    path = write(tmp_path, "top.yaml", "base: base.yaml\noptimizer: {lr: 2.0e-3}\n")
    config = load_config(path, ["run.seed=7"])
    assert (config.run.seed, config.run.name) == (7, "base")
    assert (config.optimizer.lr, config.optimizer.beta1) == (2e-3, 0.5)
    assert config.optimizer.beta2 == Config().optimizer.beta2


def test_config_dir_is_the_folder_of_the_file_that_uses_it(tmp_path):
    (tmp_path / "sub").mkdir()
    path = write(tmp_path / "sub", "config.yaml", "data: {prompts: '${config_dir}/p.jsonl'}\n")
    assert load_config(path).data.prompts == f"{tmp_path}/sub/p.jsonl"
    assert load_config(tmp_path / "sub") == load_config(path), "a folder stands for its config.yaml"


def test_save_and_load_round_trip(tmp_path):
    config = tiny(rollout={"stop": ["</answer>", "<|用户|>"]}, reward={"functions": ["a.b:c"]})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path) == config


def test_the_earlier_name_of_a_kernel_backend_becomes_todays(tmp_path):
    path = write(tmp_path, "config.yaml", "kernels: {backend: chunked}\n")
    assert load_config(path).kernels.backend == "torch"
    config = load_config(None, ["kernels.backend=chunked"])
    assert config == load_config(None, ["kernels.backend=torch"])
    save_config(config, path)
    assert "chunked" not in path.read_text() and load_config(tmp_path) == config
    with pytest.raises(ConfigError, match=r"kernels\.backend.*'torch'"):
        load_config(None, ["kernels.backend=[chunked]"])


def test_overrides_take_lists_and_null(tmp_path):
    path = write(tmp_path, "c.yaml", "grpo: {dual_clip: 3.0}\n")
    config = load_config(path, ["rollout.urls=[http://a,http://b]", "grpo.dual_clip=null", "run.resume=must"])
    assert config.rollout.urls == ("http://a", "http://b")
    assert config.grpo.dual_clip is None and config.run.resume == "must"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("rollout.urls=http://a", ("http://a",)),
        ("rollout.urls=http://a, http://b", ("http://a", "http://b")),
        ("rollout.urls=''", ()),
        ("rollout.stop=one, two", ("one, two",)),
        ("data.corpus=a.jsonl,b.jsonl", ("a.jsonl", "b.jsonl")),
        ("data.corpus=['a,b.jsonl']", ("a,b.jsonl",)),
        ("data.validation={web: a.jsonl}", {"web": ("a.jsonl",)}),
        ("logging.length_buckets=100", (100,)),
        ("logging.length_buckets=100,200", (100, 200)),
        ("reward.structure.checks=lists,headings", ("lists", "headings")),
        ("reward.functions=a:b,c:d", ("a:b", "c:d")),
        ("reward.judges={kind: rubric}", ("rubric",)),
    ],
)
def test_one_value_is_a_list_of_one_and_commas_part_what_holds_none(override, value):
    section, key = override.partition("=")[0].rsplit(".", 1)
    found = getattr(attrgetter(section)(load_config(None, [override])), key)
    plain = {"functions": lambda entry: entry.path, "judges": lambda entry: entry.kind}.get(key)
    assert (tuple(map(plain, found)) if plain else found) == value


def test_the_home_folder_is_expanded_wherever_a_path_is_set(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = {
        "run.dir", "model.hf", "model.tokenizer", "data.prompts", "data.held_out_prompts", "data.corpus",
        "data.instructions", "data.validation.web", "reward_model.pairs", "reward_model.held_out", "checkpoint.load",
        "judge.cache", "reward.writing.hf", "reward.overlap.hf", "reward.diversity.hf", "reward.continuation.hf",
        "rollout.engines_file", "weight_sync.library",
    }  # fmt: skip
    config = load_config(None, [f"{key}=~/x" for key in keys])
    text = json.dumps(config.model_dump(mode="json"))
    assert text.count(f'"{tmp_path}/x"') == len(keys) and "~" not in text
    assert load_config(None, ["run.dir=a~b"]).run.dir == "a~b"


@pytest.mark.parametrize(
    ("text", "key", "advice"),
    [
        ("grpo: {clip_hgih: 0.3}", "grpo.clip_hgih", "did you mean 'clip_high'"),
        ("gpro: {clip_high: 0.3}", "gpro", "did you mean 'grpo'"),
        ("reward: {length: {maximun: 3}}", "reward.length.maximun", "did you mean 'maximum'"),
        ("model: {architecture: {zzz: 1}}", "model.architecture", ""),
        ("training: {steps: many}", "training.steps", "must be a whole number"),
        ("training: {steps: 1.5}", "training.steps", "must be a whole number"),
        ("training: {steps: true}", "training.steps", "must be a number, not true"),
        ("training: {steps: 99999999999999999999}", "training.steps", "too large"),
        ("training: {steps: 0}", "training.steps", "must be greater than 0"),
        ("training: 3", "training", "a section of keys and values"),
        ("data: {shuffle: maybe}", "data.shuffle", "must be true or false"),
        ("run: {name: 2024}", "run.name", "a text: put it in quotes"),
        ("run: {dir: ''}", "run.dir", "an empty path"),
        ('run: {dir: "a\\0b"}', "run.dir", "NUL"),
        ("rollout: {urls: [3]}", "rollout.urls.0", "a text"),
        ("rollout: {urls: 127.0.0.1:8000}", "rollout.urls.0", "write http://host:port"),
        ("evaluation: {urls: ['http://a', 'http:///b']}", "evaluation.urls.1", "write http://host:port"),
        ("rollout: {stop: null}", "rollout.stop", "a list, e.g. [a, b]"),
        ("reward: {judges: [{}]}", "reward.judges.0.kind", "required"),
        ("reward: {violators: [1]}", "reward.violators", "keys and values"),
        ("reward: {violators: {length: 1.0e39}}", "reward.violators", "fp32"),
        ("reward: {length: {weight: 1.0e39}}", "reward.length.weight", "fp32"),
        ("optimizer: {lr: much}", "optimizer.lr", "must be a number"),
        ("optimizer: {beta1: 1}", "optimizer.beta1", "must be less than 1"),
        ("grpo: {ratio: both}", "grpo.ratio", "'token' or 'sequence'"),
        ("optimizer: {lr: .nan}", "optimizer.lr", "finite"),
    ],
)
def test_errors_are_one_line_and_name_the_key(tmp_path, text, key, advice):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "c.yaml", text))
    message = str(caught.value)
    assert key in message and advice in message and "\n" not in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [1,\nb: }", "line 2: not valid YAML (did not find"),
        ("- 1\n- 2\n", "must hold sections"),
        ("run: {dir: '${nowhere}'}\n", "nowhere"),
        ("run:\n\tseed: 1\n", "line 2: not valid YAML (a tab"),
        ("run: {seed: 1}\nrun: {seed: 2}\n", "line 2: not valid YAML (found duplicate key run)"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("run: {name: '\0'}", "control characters"),
        ("base: c.yaml\n", "leads back to this file"),
        ("base: ''\n", "base: an empty path"),
        ("base: base.${run.dir}.yaml\n", "base: Interpolation key 'run.dir' not found"),
        ("run: {seed: 1}".encode("utf-16"), "not UTF-8"),
        ("run: {name: é}".encode("latin-1"), "line 1: not UTF-8"),
    ],
)
def test_broken_files_are_one_line_errors(tmp_path, content, said):
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and said in message and "\n" not in message


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfrun:\r\n  seed: 5\r\n")
    assert load_config(path).run.seed == 5


def test_missing_files_and_malformed_overrides(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.yaml"):
        load_config(tmp_path / "nothing.yaml")
    path = write(tmp_path, "c.yaml", "base: gone.yaml\n")
    with pytest.raises(DataError, match=r"gone\.yaml"):
        load_config(path)
    good = write(tmp_path, "good.yaml", "run: {seed: 1}\n")
    for override in ("seed=3", "run.seed", "run.seed=[1,", "run..seed=1", "run.=1", "run.name=\udce9"):
        with pytest.raises(ConfigError) as caught:
            load_config(good, [override])
        assert "\n" not in str(caught.value)


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().run.seed = 3


@pytest.mark.parametrize(
    ("parallel", "key"),
    [
        ({"tensor": 3}, "parallel.tensor"),
        ({"tensor": 4}, "parallel.tensor"),  # four attention heads, but two key-value heads
        ({"pipeline": 3}, "parallel.pipeline"),
        ({"pipeline": 2, "virtual_pipeline": 4}, "parallel.pipeline"),
        ({"virtual_pipeline": 2}, "parallel.virtual_pipeline"),
        ({"tensor": 2, "pipeline": 4, "context": 4}, "parallel"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(parallel, key):
    with pytest.raises(ConfigError) as caught:
        tiny(parallel=parallel).check_layout(12)
    assert caught.value.key == key


def test_layouts_that_fit():
    tiny(parallel={"tensor": 2, "pipeline": 2, "virtual_pipeline": 2, "context": 2}).check_layout(16)


def test_grpo_checks():
    data, early = {"prompts": "p.jsonl"}, {"accumulate_groups": 4}
    tiny(data=data).check_grpo()
    tiny(data=data, rollout={"engine": "vllm", "engines_file": "f"}).check_grpo()
    tiny(data=data, training=early).check_grpo()
    for sections, key in (
        ({}, "data.prompts"),
        ({"data": data, "grpo": {"kl_coefficient": 0.1, "kl_estimator": "k1"}}, "grpo.kl_estimator"),
        ({"data": data, "rollout": {"engine": "vllm"}}, "rollout.urls"),
        ({"data": data, "rollout": {"urls": ["http://a"], "engines_file": "f"}}, "rollout.engines_file"),
        ({"data": data, "rollout": {"top_p": 0.9}, "grpo": {"mismatch": "none"}}, "rollout.top_p"),
        ({"data": data, "training": {"updates_per_batch": 7}}, "training.updates_per_batch"),
        ({"data": data, "training": {"accumulate_groups": 32}}, "training.accumulate_groups"),
        ({"data": data, "training": early | {"updates_per_batch": 2}}, "training.accumulate_groups"),
        ({"data": data, "training": early, "reward": {"shuffle": True}}, "training.accumulate_groups"),
        ({"data": data, "training": early, "rollout": {"colocated": True}}, "training.accumulate_groups"),
    ):
        with pytest.raises(ConfigError) as caught:
            tiny(**sections).check_grpo()
        assert caught.value.key == key


def test_exactly_one_source_of_the_architecture():
    for model in ({}, {"preset": "qwen2.5-7b", "architecture": TINY}, {"preset": "qwen9"}):
        with pytest.raises(ConfigError, match=r"model"):
            validate({"model": model}).architecture()


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "transformers5"])
def test_architecture_from_a_hugging_face_folder(tmp_path, nested):
    rope = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}} if nested else {"rope_theta": 5e5}
    write(tmp_path, "config.json", json.dumps(TINY | {"model_type": "qwen2", "torch_dtype": "bfloat16"} | rope))
    architecture = validate({"model": {"hf": str(tmp_path)}}).architecture()
    assert (architecture.rope_theta, architecture.vocab_size) == (5e5, 500)


def test_a_hugging_face_folder_of_another_model_is_refused(tmp_path):
    config = validate({"model": {"hf": str(tmp_path)}})
    with pytest.raises(ConfigError, match=r"model\.hf"):
        config.architecture()
    write(tmp_path, "config.json", json.dumps(TINY | {"model_type": "llama"}))
    with pytest.raises(DataError, match="llama"):
        config.architecture()
    write(tmp_path, "config.json", "{")
    with pytest.raises(DataError, match="JSON"):
        config.architecture()
    write(tmp_path, "config.json", json.dumps({"model_type": "qwen2", "hidden_size": 3}))
    with pytest.raises(DataError) as caught:
        config.architecture()
    assert "\n" not in str(caught.value)


def test_reading_a_config_needs_no_torch():
    """`--help` and config errors should come at once; importing torch takes seconds."""
    code = "import sys, megatron_lwz.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("written", "read"), [("on", "on"), ("off", "off"), ("'on'", "on"), ("observe", "observe")])
def test_words_that_yaml_takes_for_true_and_false_are_choices(tmp_path, written, read):
    (tmp_path / "config.yaml").write_text(f"rollout: {{guard: {{mode: {written}}}}}\n", encoding="utf-8")
    assert load_config(tmp_path / "config.yaml").rollout.guard.mode == read
    assert load_config(None, [f"rollout.guard.mode={written}"]).rollout.guard.mode == read


def test_unbalanced_brackets_in_a_key_are_an_error_of_the_override():
    with pytest.raises(ConfigError, match="cannot be read as"):
        load_config(None, [r"[[Y[[\ud800training.steps=3"])


def test_values_that_are_too_long_to_print_are_cut_or_named(tmp_path):
    (tmp_path / "config.yaml").write_text(f"grpo: {{other: 0{'1' * 6000}}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'grpo.other' = \(with a number of more than 4,300 digits\): unknown key"):
        load_config(tmp_path / "config.yaml")
    with pytest.raises(ConfigError) as refused:
        load_config(None, [f"grpo.other={'x' * 100_000}"])
    assert len(str(refused.value)) < 1000 and "x…: unknown key" in str(refused.value)
