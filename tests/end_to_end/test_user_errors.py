"""What a user gets wrong is one line on stderr that names the key or file and the value, and exit status 2."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from megatron_lwz.cli import (
    common,
    pretrain,
    score,
    serve_engine,
    serve_reward,
    train_grpo,
    train_reward_model,
    train_sft,
)
from tests.support import stages
from tests.support.engine_model import write_engine_model
from tests.support.grpo_runs import write_example
from tests.support.tiny_qwen2 import SIZES, write_word_tokenizer


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example(tmp_path_factory.mktemp("errors"))


def error_of(capsys: pytest.CaptureFixture[str], main, *argv: object) -> str:
    assert common.run(main, [str(part) for part in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.stepz=3", "'training.stepz' = 3: unknown key, did you mean 'steps'?"),
        ("training.steps=many", "'training.steps' = 'many'"),
        ("grpo.clip_low=-1", "'grpo.clip_low' = -1"),
        ("nonsense", "reads section.key=value"),
        ("parallel.tensor=3", "must divide the model's 4 attention heads"),
        ("parallel.tensor=2", "must divide the 1 ranks"),
        ("model.tokenizer=/nowhere", "'model.tokenizer' = '/nowhere'"),
        ("checkpoint.load=/nowhere", "/nowhere"),
        ("run.resume=must", "no checkpoint under"),
        ("data.prompts=/nowhere.jsonl", "/nowhere.jsonl"),
        ("reward.length.maximum=40", "L_max is 40"),
        ("reward.functions=[no.such:function]", "'reward.functions' = 'no.such:function'"),
        ("reward.advantage_function=no.such:function", "'reward.advantage_function' = 'no.such:function'"),
        ("grpo.loss_function=no.such:loss", "'grpo.loss_function' = 'no.such:loss': cannot be imported"),
        ("grpo.loss_function=tests.support.user_losses:scalar", "the loss has shape [] for 40 tokens"),
        ("rollout.over_sampling=1", "at most rollout.max_staleness = 0"),
        ("rollout.urls=http://127.0.0.1:9", "engine http://127.0.0.1:9: "),
        ("rollout.urls=3", "'rollout.urls.0' = 3: must be a text"),
        ("run.dir=/dev/null/run", "'run.dir' = '/dev/null/run': cannot be a run folder (Not a directory)"),
        ("run.dir=/proc/run", "'run.dir' = '/proc/run': cannot be a run folder (No such file or directory)"),
        (
            "run.allow_change=run.sed",
            "'run.allow_change' = 'run.sed': 'run.sed' is no key that a run keeps: these are",
        ),
        ("run.dir=''", "'run.dir' = '': an empty path"),
        ("training.tokens_per_micro_batch=80", "must hold the longest rollout"),
    ],
)
def test_bad_setting_of_the_main_job(config: Path, capsys, tmp_path: Path, override: str, said: str) -> None:
    assert said in error_of(capsys, train_grpo.main, config, f"run.dir={tmp_path}/run", override)
    assert not (tmp_path / "run").exists(), "a first start that fails leaves nothing"


STAGES = {
    train_grpo: (),
    pretrain: ("data.corpus=[corpus.jsonl]", "training.sequence_length=64"),
    train_sft: ("data.instructions=[rows.jsonl]", "training.sequence_length=64"),
    train_reward_model: ("reward_model.pairs=[pairs.jsonl]", "training.sequence_length=64"),
}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__.rpartition(".")[2])
def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(config: Path, capsys, tmp_path, stage) -> None:
    settings = (config, f"run.dir={tmp_path}/run", *STAGES[stage])
    error = error_of(capsys, stage.main, *settings, "model.architecture.vocab_size=256")
    assert "tokenizer.json: has ids up to 256, but model.architecture has vocab_size 256" in error
    error = error_of(capsys, stage.main, *settings, "model.architecture.max_position_embeddings=63")
    assert "tokens are more than the 63 of max_position_embeddings in model.architecture" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("server", [serve_engine, serve_reward], ids=["engine", "reward"])
def test_a_server_refuses_what_its_model_cannot_take(capsys, tmp_path: Path, server) -> None:
    tokens = write_word_tokenizer(tmp_path, ["a", "b"])
    scorer = {"architectures": ["Qwen2ForSequenceClassification"], "num_labels": 1} if server is serve_reward else {}
    sizes = {"model_type": "qwen2"} | scorer | SIZES | {"max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    arguments = ("--model", tmp_path, "--port", 0)
    error = error_of(capsys, server.main, *arguments, "--max-length", 129)
    assert "--max-length 129: 129 tokens are more than the 128" in error
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"vocab_size": tokens - 1}))
    error = error_of(capsys, server.main, *arguments)
    assert f"has ids up to 2, but {tmp_path / 'config.json'} has vocab_size 2" in error


def test_a_loss_function_that_fails_during_the_run_ends_it_in_one_line(config: Path, tmp_path: Path) -> None:
    function = "tests.support.grpo_runs:fails_on_a_batch"
    done = stages.run("train_grpo", str(config), f"run.dir={tmp_path}/run", f"grpo.loss_function={function}")
    (error,) = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
    assert done.returncode == 2, done.stderr
    assert error.startswith(
        f"error: config key 'grpo.loss_function' = '{function}': raised RuntimeError: no such batch ("
    )
    assert "grpo_runs.py, line" in error


def test_broken_line_of_a_prompt_file_is_named(config: Path, capsys, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": 1, "prompt": "a"}\n{"id": 2, "prompt": \n')
    error = error_of(capsys, train_grpo.main, config, f"run.dir={tmp_path}/run", f"data.prompts={prompts}")
    assert f"{prompts}, line 2: not valid JSON" in error


def test_broken_line_of_a_corpus_is_named(config: Path, capsys, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a"}\n{"txt": "b"}\n')
    settings = ("training.sequence_length=64", f"data.corpus=['{corpus}']", f"run.dir={tmp_path}/run")
    assert f"{corpus}, line 2" in error_of(capsys, pretrain.main, config, *settings)


def test_broken_row_to_score_is_named(config: Path, capsys, tmp_path: Path) -> None:
    rows = tmp_path / "tokens.jsonl"
    rows.write_text(json.dumps({"id": "a", "tokens": [1, 2, 9999], "prompt_length": 1}) + "\n")
    error = error_of(capsys, score.main, config, "--input", rows, "--output", tmp_path / "out.jsonl")
    assert f"{rows}, line 1" in error and "9999" in error
    rows.write_text(json.dumps({"id": "a", "tokens": [1] * 65, "prompt_length": 1}) + "\n")
    short = "model.architecture.max_position_embeddings=64"
    error = error_of(capsys, score.main, config, short, "--input", rows, "--output", tmp_path / "out.jsonl")
    assert f"{rows}: row 'a': 65 tokens are more than the 64" in error
    assert not (tmp_path / "out.jsonl").exists()


def test_missing_config_and_yaml_fault_name_the_file(capsys, tmp_path: Path) -> None:
    assert "nowhere.yaml" in error_of(capsys, train_grpo.main, tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("run:\n  dir: [\n")
    assert "broken.yaml, line" in error_of(capsys, train_grpo.main, tmp_path / "broken.yaml")


def test_port_in_use_is_said_before_the_model_is_loaded(capsys, tmp_path: Path) -> None:
    write_engine_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    capsys.readouterr()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = error_of(capsys, serve_engine.main, "--model", tmp_path, "--port", port)
    assert str(port) in error
