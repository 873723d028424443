"""A start holds its run folder alone, decides whether to resume, and writes nothing before `begin`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_lwz.config import Config, load_config, validate
from megatron_lwz.distributed import launch
from megatron_lwz.errors import ConfigError
from megatron_lwz.run_paths import RunPaths, step_name
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


def config_of(folder: Path | str, *, steps: int = 4, resume: str = "auto") -> Config:
    return validate(
        {
            "model": {"architecture": MODEL, "vocab_padding": 8},
            "run": {"dir": str(folder), "resume": resume},
            "training": {"steps": steps},
        }
    )


def write_run(root: Path, *, step: int, summary: object = None) -> Path:
    """What a run leaves that a start looks at."""
    paths = RunPaths(root)
    paths.checkpoints.mkdir(parents=True)
    paths.latest.write_text(step_name(step))
    paths.config.write_text("run: {seed: 1}\n")
    if summary is not None:
        paths.summary.write_text(json.dumps(summary))
    return root


def test_nothing_is_written_before_begin(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", step=2, summary={"steps": 2})
    before = contents(root)
    run = RunFolder(config_of(root))
    assert run.resume == root / "checkpoints" / "step_00000002" and not run.finished
    assert {name: data for name, data in contents(root).items() if name != "writer.lock"} == before
    run.begin()
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
            RunFolder(config_of(root))
        assert caught.value.key == "run.dir" and f"process {holder.pid} on " in str(caught.value)
        assert contents(root) == before
        holder.kill()
    RunFolder(config_of(root))


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
        assert RunFolder(config_of(root, steps=steps)).finished is finished
    said = f"{root}: already finished at step 4: raise training.steps ({steps}) to go on"
    assert caplog.messages == ([said] if finished else [])


def test_resume_must_and_never_are_kept(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint under"):
        RunFolder(config_of(tmp_path / "new", resume="must"))
    assert RunFolder(config_of(tmp_path / "new", resume="never")).resume is None
    used = write_run(tmp_path / "used", step=2)
    with pytest.raises(ConfigError, match="latest exists"):
        RunFolder(config_of(used, resume="never"))
    assert RunFolder(config_of(used, resume="must")).resume is not None


@pytest.mark.parametrize(
    ("place", "said"), [("file", "File exists"), ("file/run", "Not a directory"), ("/proc/run", "No such file")]
)
def test_a_place_where_no_folder_can_be_is_one_line(tmp_path: Path, place: str, said: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        RunFolder(config_of(tmp_path / place))
    assert caught.value.key == "run.dir" and said in str(caught.value) and str(tmp_path / place) in str(caught.value)
