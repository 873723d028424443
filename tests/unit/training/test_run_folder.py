"""A start holds its run folder alone, decides whether to resume and what may change, and writes nothing before `begin`."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_lwz import mounts
from megatron_lwz.config import Config, Stage, load_config, save_config, unread, validate
from megatron_lwz.distributed import launch
from megatron_lwz.errors import ConfigError
from megatron_lwz.run_paths import RunPaths, step_name
from megatron_lwz.training import run_folder
from megatron_lwz.training.attempts import last_attempt
from megatron_lwz.training.run_folder import RunFolder
from tests.support.files import contents

MODEL = {
    "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 24,
}  # fmt: skip
HOLDER = """
import sys
from pathlib import Path
from megatron_lwz.file_lock import FileLock
lock = FileLock(Path(sys.argv[1]))
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def groups() -> Iterator[None]:
    launch.initialize(config_of("unused"))
    yield
    launch.shutdown()


def config_of(folder: Path | str, *, steps: int = 4, resume: str = "auto", **keys: Any) -> Config:
    """A config; `keys` are further settings, `section__key=value`."""
    tree: dict[str, dict[str, Any]] = {
        "model": {"architecture": MODEL, "vocab_padding": 8},
        "run": {"dir": str(folder), "resume": resume},
        "training": {"steps": steps},
    }
    for key, value in keys.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    return validate(tree)


def end_start() -> None:
    """Ends the start as the end of a stage does; the next one may follow."""
    launch.shutdown()
    launch.initialize(config_of("unused"))


def folder_of(config: Config, stage: Stage = "sft") -> RunFolder:
    return RunFolder(config, stage)


def write_run(root: Path, *, step: int, summary: object = None) -> Path:
    """What a run leaves that a start looks at."""
    paths = RunPaths(root)
    paths.checkpoints.mkdir(parents=True)
    paths.latest.write_text(step_name(step))
    save_config(config_of(root), paths.config)
    if summary is not None:
        paths.summary.write_text(json.dumps(summary))
    return root


def test_nothing_is_written_before_begin(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", step=2, summary={"steps": 2})
    before = contents(root)
    run = folder_of(config_of(root))
    assert run.resume == root / "checkpoints" / "step_00000002" and not run.finished
    assert {name: data for name, data in contents(root).items() if name != "writer.lock"} == before
    assert run.begin(2) == 0
    assert load_config(root) == config_of(root) and not run.summary.exists()
    launch.shutdown()
    assert run.lock.read_bytes() == b""


def test_a_folder_that_another_process_writes_is_refused_by_name(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", step=2)
    command = [sys.executable, "-c", HOLDER, str(RunPaths(root).lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        before = contents(root)
        with pytest.raises(ConfigError) as caught:
            folder_of(config_of(root))
        assert caught.value.key == "run.dir" and f"process {holder.pid} on " in str(caught.value)
        assert contents(root) == before
        holder.kill()
    folder_of(config_of(root))


@pytest.mark.parametrize(
    ("step", "summary", "steps", "finished"),
    [
        (4, {"steps": 4}, 4, True),
        (4, {"steps": 4}, 3, True),
        (4, {"steps": 4}, 5, False),  # raised: it goes on
        (4, None, 4, False),  # killed after the last checkpoint: the export is missing
        (4, {"steps": 3}, 4, False),  # the summary is of an earlier end
        (4, [], 4, False),
        (4, {"steps": "4"}, 4, False),
    ],
)
def test_a_run_is_finished_when_all_its_steps_are_taken_and_summed_up(
    tmp_path: Path, caplog, step: int, summary: object, steps: int, finished: bool
) -> None:
    root = write_run(tmp_path / "run", step=step, summary=summary)
    with caplog.at_level("INFO", "megatron_lwz"):
        assert folder_of(config_of(root, steps=steps)).finished is finished
    said = [f"changed since the last start: training.steps: 4 -> {steps}"] if steps != 4 else []
    if finished:
        said.append(f"{root}: already finished at step 4: raise training.steps ({steps}) to go on")
    assert caplog.messages == said


def test_resume_must_and_never_are_kept(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint under"):
        folder_of(config_of(tmp_path / "new", resume="must"))
    assert folder_of(config_of(tmp_path / "new", resume="never")).resume is None
    used = write_run(tmp_path / "used", step=2)
    with pytest.raises(ConfigError, match="latest exists"):
        folder_of(config_of(used, resume="never"))
    assert folder_of(config_of(used, resume="must")).resume is not None


@pytest.mark.parametrize(
    ("place", "said"), [("file", "File exists"), ("file/run", "Not a directory"), ("/proc/run", "No such file")]
)
def test_a_place_where_no_folder_can_be_is_one_line(tmp_path: Path, place: str, said: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        folder_of(config_of(tmp_path / place))
    assert caught.value.key == "run.dir" and said in str(caught.value) and str(tmp_path / place) in str(caught.value)


def tree_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "before",
    [
        [],
        ["deep/"],
        ["deep/run/"],
        ["deep/run/config.yaml"],
        ["deep/run/writer.lock"],  # of a start that was killed before it began
        ["deep/run/config.yaml", "deep/run/writer.lock"],
    ],
)
@pytest.mark.parametrize("early", [True, False])
def test_a_start_that_does_not_begin_leaves_the_folder_as_it_was(
    tmp_path: Path, before: list[str], early: bool
) -> None:
    for name in before:
        path = tmp_path / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    found = tree_of(tmp_path)
    root = tmp_path / "deep" / "run"
    if early:
        with pytest.raises(ConfigError, match="no checkpoint under"):
            folder_of(config_of(root, resume="must"))
    else:
        run = folder_of(config_of(root))
        run.new_corpus.mkdir()
        (run.new_corpus / "tokens.bin").touch()
        launch.shutdown()
    left = ["deep", "deep/run"] if before == ["deep/run/writer.lock"] else found
    assert tree_of(tmp_path) == left


def test_a_log_of_a_start_that_failed_stays(tmp_path: Path) -> None:
    run = folder_of(config_of(tmp_path / "run"))
    run.reward_model_log.write_text("why it failed")
    launch.shutdown()
    assert tree_of(tmp_path) == ["run", "run/reward_model.log"]


def test_a_new_corpus_takes_the_place_of_the_old_one_when_the_run_begins(tmp_path: Path) -> None:
    for content in ("old", "new"):
        run = folder_of(config_of(tmp_path), "pretrain")
        run.new_corpus.mkdir()
        (run.new_corpus / "tokens.bin").write_text(content)
        run.begin(0)
        end_start()
        assert (run.corpus / "tokens.bin").read_text() == content and not run.new_corpus.exists()
    run.new_corpus.mkdir()  # of a start that was killed before it began
    folder_of(config_of(tmp_path), "pretrain").begin(0)
    assert (run.corpus / "tokens.bin").read_text() == "new"


@pytest.mark.parametrize(
    ("stage", "allowed", "changed", "refused"),
    [
        ("sft", "", {"optimizer__lr": 0.5, "run__name": "x", "parallel__tensor": 2}, None),
        ("sft", "", {"run__seed": 7}, "run.seed"),
        ("sft", "run.seed", {"run__seed": 7}, None),
        ("sft", "run", {"run__seed": 7}, None),
        ("sft", "run.seed", {"run__seed": 7, "data__template": "bare"}, "data.template"),
        ("sft", "run.seed, data", {"run__seed": 7, "data__template": "bare"}, None),
        ("pretrain", "", {"data__template": "bare"}, None),  # which that stage does not read
        ("sft", "", {"data__instructions": ["rows.jsonl"]}, "data.instructions"),
        ("grpo", "", {"data__instructions": ["rows.jsonl"]}, None),
        ("grpo", "", {"rollout__temperature": 0.5}, "rollout.temperature"),
        ("grpo", "", {"reward__length": {"unit": "characters"}}, "reward.length.unit"),
        ("sft", "", {"model__architecture": MODEL | {"rope_theta": 500.0}}, "model.architecture.rope_theta"),
        ("sft", "model.architecture", {"model__architecture": MODEL | {"rope_theta": 500.0}}, None),
        ("reward_model", "", {"model__head": "scalar"}, "model.head"),
        ("sft", "", {"model__tokenizer": "/elsewhere"}, "model.tokenizer"),
    ],
)
def test_what_a_run_keeps_changes_only_when_it_is_allowed(
    tmp_path: Path, caplog, stage: Stage, allowed: str, changed: dict[str, Any], refused: str | None
) -> None:
    root = write_run(tmp_path / "run", step=2)
    before = contents(root)
    config = config_of(root, run__allow_change=allowed, **changed)
    if refused is not None:
        with pytest.raises(ConfigError) as caught:
            folder_of(config, stage)
        text = str(caught.value)
        assert caught.value.key == refused and f"or allow it with run.allow_change={refused}" in text
        assert contents(root) == before and "\n" not in text
        return
    with caplog.at_level("INFO", "megatron_lwz"):
        run = folder_of(config, stage)
    run.begin(2)
    row, said = last_attempt(run.attempts), [line for line in caplog.messages if "does not read" not in line]
    assert row["stage"] == stage and row["step"] == 2 and len(row["changed"]) == len(changed) == len(said)
    assert (len(caplog.messages) > len(said)) == bool(unread(config, stage)), "what is set for other stages is named"
    for line, (key, (old, new)) in zip(said, row["changed"].items(), strict=True):
        assert line == f"changed since the last start: {key}: {json.dumps(old)} -> {json.dumps(new)}"


def test_all_refused_changes_stand_in_one_line(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", step=2)
    with pytest.raises(ConfigError) as caught:
        folder_of(config_of(root, run__seed=7, data__shuffle=False))
    assert "run.allow_change=run.seed,data.shuffle; also changed: data.shuffle: true -> false" in str(caught.value)


def test_before_the_first_checkpoint_everything_may_change(tmp_path: Path) -> None:
    folder_of(config_of(tmp_path)).begin(0)
    end_start()
    assert folder_of(config_of(tmp_path, run__seed=7), "pretrain").begin(0) == 1


def write_tokenizer(folder: Path, content: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(content)
    return str(folder)


@pytest.mark.parametrize(
    ("folder", "content", "refused"),
    [("a", "{}", False), ("b", "{}", False), ("a", "[]", True), ("b", "[]", True)],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_a_tokenizer_is_told_by_its_content(
    tmp_path: Path, folder: str, content: str, refused: bool, recorded: bool
) -> None:
    root = write_run(tmp_path / "run", step=2)
    paths, first = RunPaths(root), write_tokenizer(tmp_path / "a", "{}")
    save_config(config_of(root, model__tokenizer=first), paths.config)
    if recorded:
        checksum = hashlib.sha256(b"{}").hexdigest()
        paths.attempts.write_text(json.dumps({"stage": "sft", "tokenizer": checksum}) + "\n")
    elif folder == "a":
        refused = False  # an earlier release did not record it
    config = config_of(root, model__tokenizer=write_tokenizer(tmp_path / folder, content))
    if refused:
        with pytest.raises(ConfigError, match=r"run\.allow_change=model\.tokenizer") as caught:
            folder_of(config)
        assert caught.value.key == "model.tokenizer"
    else:
        folder_of(config).begin(2)


def test_the_same_folder_may_be_spelt_in_another_way(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", step=2)
    (tmp_path / "link").symlink_to(tmp_path)
    save_config(config_of(root, checkpoint__load=f"{tmp_path}/start"), RunPaths(root).config)
    folder_of(config_of(root, checkpoint__load=f"{tmp_path}/link/start/")).begin(2)
    assert last_attempt(RunPaths(root).attempts)["changed"] == {}


@pytest.mark.parametrize(
    ("mark", "other"),
    [
        (lambda paths: paths.attempts.write_text('{"stage": "sft"}\n{"sta'), "grpo"),
        (lambda paths: paths.attempts.write_text('{"attempt": 0}\n'), "sft"),  # by an earlier release, as the others
        (lambda paths: paths.journal.touch(), "sft"),
        (lambda paths: paths.corpus.mkdir(), "sft"),
        (lambda paths: save_config(config_of(paths.root, model__head="scalar"), paths.config), "sft"),
    ],
    ids=["recorded", "a log of starts", "a journal", "a corpus", "a scalar head"],
)
def test_the_folder_of_another_stage_is_refused(
    tmp_path: Path, mark: Callable[[RunPaths], object], other: Stage
) -> None:
    root = write_run(tmp_path / "run", step=2)
    mark(RunPaths(root))
    with pytest.raises(ConfigError, match=f"holds a run of the stage .*, and this is {other}: choose another folder"):
        folder_of(config_of(root), other)


@pytest.mark.parametrize("text", ["", "run: [", "run: {sed: 1}"])
def test_a_config_that_cannot_be_compared_is_said_and_the_run_goes_on(tmp_path: Path, caplog, text: str) -> None:
    root = write_run(tmp_path / "run", step=2)
    RunPaths(root).config.write_text(text)
    folder_of(config_of(root, run__allow_change="model")).begin(2)
    assert bool(text) == any("what changed since the last start is unknown" in line for line in caplog.messages)


@pytest.mark.parametrize("ends", [True, False])
def test_a_start_waits_for_the_rollout_process_of_a_trainer_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    root = write_run(tmp_path / "run", step=2)
    before = contents(root)
    monkeypatch.setattr(run_folder, "_LEFT_SECONDS", 30.0 if ends else 0.3)
    program = "import sys, time; from pathlib import Path; from megatron_lwz.file_lock import FileLock\n"
    program += "lock = FileLock(Path(sys.argv[1])); print(flush=True); time.sleep(float(sys.argv[2]))"
    command = [sys.executable, "-c", program, f"{root}/journal.sqlite.lock", "1" if ends else "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as left:
        left.stdout.readline()
        try:
            if ends:
                folder_of(config_of(root), "grpo").begin(2)
            else:
                with pytest.raises(ConfigError, match=f"process {left.pid} on .* still writes journal.sqlite"):
                    folder_of(config_of(root), "grpo")
                assert {n: data for n, data in contents(root).items() if not n.endswith(".lock")} == before
        finally:
            left.kill()


def test_a_mount_that_keeps_locks_to_one_host_is_said(tmp_path: Path, caplog, monkeypatch) -> None:
    (tmp_path / "mounts").write_text("22 1 8:1 / / rw - nfs server:/a rw,nolock\n")
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mounts")
    folder_of(config_of(tmp_path / "run"))
    assert f"{tmp_path}/run: this mount (nfs, nolock) keeps locks to one host" in caplog.text
    end_start()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "writer.lock").write_text("process 7 on another-host\n")
    with pytest.raises(ConfigError, match="process 7 on another-host writes this run: this mount"):
        folder_of(config_of(tmp_path / "run"))
