import os
import signal
import subprocess
import sys
import time

import pytest

from megatron_lwz.cli import common, main
from megatron_lwz.errors import ConfigError, LwzError

CONFIG = "run: {dir: somewhere}\nparallel: {tensor: 2}\n"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def test_load_reads_the_file_and_overrides_win(config):
    loaded = common.load([str(config), "parallel.tensor=4", "run.seed=7"])
    assert (loaded.parallel.tensor, loaded.run.seed, loaded.run.dir) == (4, 7, "somewhere")


def test_options_and_overrides_come_in_any_order(config):
    parser = common.parser("Score.")
    parser.add_argument("--input", required=True)
    loaded, arguments = common.parse(parser, [str(config), "--input", "a.jsonl", "run.seed=9"])
    assert (loaded.run.seed, arguments.input) == (9, "a.jsonl")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["parallel.tensr=2"], "did you mean 'tensor'"),
        (["parallel.tensor=two"], "parallel.tensor"),
        (["nonsense"], "section.key=value"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_a_bad_command_line_is_one_line_and_status_2(config, capsys, argv, named):
    assert common.run(common.load, [str(config), *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert named in error


def test_a_missing_config_names_the_file(tmp_path, capsys):
    assert common.run(common.load, [str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
    assert common.run(common.load, []) == 2
    assert "CONFIG" in capsys.readouterr().err


def test_traceback_shows_the_stack(config, capsys):
    assert common.run(common.load, [str(config), "--traceback", "grpo.group_size=1"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and "grpo.group_size" in error


def test_a_bug_is_not_dressed_up_as_a_user_error():
    with pytest.raises(ZeroDivisionError):
        common.run(lambda _argv: 1 / 0, [])


def _fail(_argv):
    raise ConfigError("parallel.tensor", 3, "must divide")


def test_other_ranks_speak_only_when_rank_zero_did_not_end_them(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(common, "_GRACE_SECONDS", 0.0)
    assert common.run(_fail, []) == 2
    assert capsys.readouterr().err.startswith("error (rank 1): ")

    monkeypatch.setattr(common, "_GRACE_SECONDS", 60.0)
    monkeypatch.setattr(common.time, "sleep", lambda _s: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(0))
    assert common.run(_fail, []) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_runs_the_cleanup_and_gives_its_status(number, status):
    code = (
        "import signal, sys, time\nfrom megatron_lwz.cli import common\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # parallel test workers ignore it, and children inherit
        "def main(argv):\n"
        "    try:\n        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n        print('closed', flush=True)\n"
        "sys.exit(common.run(main, []))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (status, "closed\n", "")


def test_progress_prints_plain_lines_on_rank_zero_only(monkeypatch, capsys):
    def show():
        with common.StepProgress("grpo", 2) as progress:
            progress(1, {"reward": 0.25})
            progress(2, {"reward": 0.5})
        return capsys.readouterr().out

    assert show() == "grpo 1/2  reward 0.25\ngrpo 2/2  reward 0.5\n"
    monkeypatch.setenv("RANK", "1")
    assert show() == ""


def test_lwz_lists_its_commands_and_refuses_others(capsys):
    main.dispatch([])
    out = capsys.readouterr().out
    assert all(name in out for name in main.COMMANDS)
    with pytest.raises(LwzError, match="no command 'serve'"):
        main.dispatch(["serve"])


def test_lwz_imports_nothing_heavy_before_a_command_is_called():
    code = (
        "import sys; import megatron_lwz.cli.main; print('megatron.core' in sys.modules, 'transformers' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "False False\n"
